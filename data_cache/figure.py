"""Panels with titles, notes and a legend: HTML in a notebook, or one picture to save."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_cache.colours import colour_of
from data_cache.show import legend, rows_of

SIDE = 144
"""Side of a panel in pixels: six of them fit into a notebook's width."""

_BOX = "display:inline-block;vertical-align:top;margin:4px 8px 4px 0"
_SWATCH = "display:inline-block;width:0.9em;height:0.9em;border:1px solid rgba(128,128,128,0.6);margin-right:0.3em"


@dataclass(frozen=True)
class Panel:
    """A picture below its title, shown `SIDE` x `SIDE` pixels large; a `photograph` is stored with a little loss."""

    title: str
    pixels: UInt8[np.ndarray, "height width 3"]
    photograph: bool = False

    def scaled(self) -> Image.Image:
        """The picture `SIDE` pixels large; labels are copied, never blended."""
        kind = Image.Resampling.BICUBIC if self.photograph else Image.Resampling.NEAREST
        return Image.fromarray(self.pixels).resize((SIDE, SIDE), kind)

    def html(self) -> str:
        """The title and the picture, which is part of the text: nothing is fetched."""
        kind, options = ("jpeg", {"quality": 85}) if self.photograph else ("png", {"optimize": True})
        file = io.BytesIO()
        self.scaled().save(file, kind, **options)
        data = base64.b64encode(file.getvalue()).decode()
        picture = (
            f'<img src="data:image/{kind};base64,{data}" width="{SIDE}" height="{SIDE}" alt="{escape(self.title)}"/>'
        )
        return f'<div style="{_BOX};width:{SIDE}px"><div>{escape(self.title)}</div>{picture}</div>'


@dataclass(frozen=True)
class Figure:
    """Panels in rows, what there is to say of them, and a legend of labels."""

    panels: Sequence[Panel]
    heading: str = ""
    notes: Sequence[str] = ()
    legend: Mapping[int, str] = field(default_factory=dict)

    def drawn(self, columns: int = 6) -> Image.Image:
        """The panels and the legend as one picture on white, to be saved."""
        picture = rows_of(
            [np.array(panel.scaled()) for panel in self.panels], [p.title for p in self.panels], SIDE, columns
        )
        return legend(picture, self.legend) if self.legend else picture

    def _repr_html_(self) -> str:
        heading = f"<div><strong>{escape(self.heading)}</strong></div>" if self.heading else ""
        panels = "".join(panel.html() for panel in self.panels)
        names = "".join(_named_colour(label, name) for label, name in self.legend.items())
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        return f"<div>{heading}<div>{panels}</div><div>{names}</div>{notes}</div>"


def _named_colour(label: int, name: str) -> str:
    red, green, blue = colour_of(label)
    swatch = f'<span style="{_SWATCH};background-color:rgb({red},{green},{blue})"></span>'
    return f'<span style="display:inline-block;margin-right:1em">{swatch}{escape(name)}</span>'
