"""The report's HTML page. It embeds all images and charts, and needs neither network nor scripts."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from viewer.figure import Panel

JPEG_QUALITY = 88


def render_page(**values: Any) -> str:
    """Fill in the template `report_page.html`. Raises jinja2.UndefinedError if a value is missing."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": percent,
        "uri": data_uri,
        "hex": hex_color,
        "setting": setting,
        "breakable": breakable,
    }
    template = environment.from_string(Path(__file__).with_name("report_page.html").read_text(encoding="utf-8"))
    return template.render(values)


def percent(share: float | None) -> str:
    """A share in percent, or a dash if there is none."""
    return "-" if share is None or np.isnan(share) else f"{100 * share:.1f}"


def data_uri(panel: Panel) -> str:
    """A panel as a data URI, at its original size."""
    return panel.data_uri(max(panel.pixels.shape[:2]), JPEG_QUALITY)


def hex_color(color: UInt8[np.ndarray, "3"]) -> str:
    """A color in CSS notation."""
    return "#" + bytes(color).hex()


def setting(value: Any) -> str:
    """The value of a setting in the notation of the command line."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def breakable(name: str) -> Markup:
    """The name of a setting, with an optional line break after each underscore."""
    return Markup("_<wbr>").join(name.split("_"))
