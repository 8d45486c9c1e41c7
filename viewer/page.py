"""The report's HTML page: it needs no network and no script, as pictures and charts are part of it."""

from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from viewer.figure import Panel
from viewer.palette import colour_of

JPEG_QUALITY = 88


def render_page(**values: Any) -> str:
    """Fill in the template `report_page.html`. Raises jinja2.UndefinedError if a value that it uses is missing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "uri": data_uri,
        "hex": hexadecimal,
        "setting": setting,
        "breakable": breakable,
    }
    template = environment.from_string(Path(__file__).with_name("report_page.html").read_text(encoding="utf-8"))
    return template.render(values)


def percent(share: float | None) -> str:
    """A share in per cent, a dash where there is none."""
    return "-" if share is None or np.isnan(share) else f"{100 * share:.1f}"


def data_uri(panel: Panel) -> str:
    """A picture as a URI that holds it, as large as it is."""
    return panel.data_uri(max(panel.pixels.shape[:2]), JPEG_QUALITY)


def hexadecimal(label: int) -> str:
    """The colour of a label, as CSS has it."""
    return "#" + bytes(colour_of(label)).hex()


def setting(value: Any) -> str:
    """The value of a setting as the command line has it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def breakable(name: str) -> Markup:
    """The name of a setting, which may go on in another line behind each underscore."""
    return Markup("_<wbr>").join(name.split("_"))
