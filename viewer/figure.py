"""Figures: rows of titled panels with captions, notes and a legend, as HTML for notebooks or as one image."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from viewer.legend import LegendEntry
from viewer.render import add_legend, fit_size, render_grid, stack

SIDE, COLUMNS = 144, 6
"""Longer side in pixels of a panel in a notebook, and the number of panels that fit into its width."""

_BOX = "display:inline-block;vertical-align:bottom;margin:4px 8px 4px 0"
_COLUMN = "display:inline-block;vertical-align:top"
_SWATCH = "display:inline-block;width:0.9em;height:0.9em;border:1px solid rgba(128,128,128,0.6);margin-right:0.3em"


@dataclass(frozen=True)
class Panel:
    """An image with a title.

    A `continuous` panel (not a label map) is resampled bicubically and embedded as JPEG; others are resampled by
    nearest neighbor and embedded losslessly.
    """

    title: str
    pixels: UInt8[np.ndarray, "height width 3"] = field(repr=False)
    continuous: bool = False

    def resized(self, side: int) -> Image.Image:
        """The image with a longer side of `side` pixels."""
        height, width = fit_size(*self.pixels.shape[:2], side)
        method = Image.Resampling.BICUBIC if self.continuous else Image.Resampling.NEAREST
        return Image.fromarray(self.pixels).resize((width, height), method)

    def data_uri(self, side: int, quality: int = 85) -> str:
        """A data URI that contains the image."""
        kind, options = ("jpeg", {"quality": quality}) if self.continuous else ("png", {"optimize": True})
        stream = io.BytesIO()
        self.resized(side).save(stream, kind, **options)
        return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"

    def html(self, side: int) -> str:
        """The title above the image."""
        height, width = fit_size(*self.pixels.shape[:2], side)
        title, sizes = escape(self.title), f'width="{width}" height="{height}"'
        img = f'<img src="{self.data_uri(side)}" {sizes} alt="{title}"/>'
        return f'<div style="{_BOX};width:{side}px"><div>{title}</div>{img}</div>'


@dataclass(frozen=True)
class FigureRow:
    """Panels side by side, below a caption if it has one."""

    panels: Sequence[Panel]
    caption: str = ""

    @property
    def titles(self) -> list[str]:
        """The titles of the panels."""
        return [panel.title for panel in self.panels]


@dataclass(frozen=True)
class Figure:
    """Rows of panels.

    Args:
        rows: rows of panels with captions.
        heading: shown above all rows, in a notebook only.
        legend: the classes that occur in any panel.
        hatched: the meaning of hatched area.
        notes: how to read the figure, or what is missing.
        warnings: what is missing or wrong; commands print these, too.
        side: longer side of a panel in pixels.
        aligned: whether panels of one column stay below each other in a notebook of any width.

    """

    rows: Sequence[FigureRow]
    heading: str = ""
    legend: Sequence[LegendEntry] = ()
    hatched: str = ""
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    side: int = SIDE
    aligned: bool = False

    @classmethod
    def of(cls, panels: Sequence[Panel], columns: int = COLUMNS, **options: Any) -> "Figure":
        """A figure with panels in rows of `columns`; `options` are its other fields."""
        return cls([FigureRow(panels[i : i + columns]) for i in range(0, len(panels), columns)], **options)

    @property
    def panels(self) -> list[Panel]:
        """The panels of all rows."""
        return [panel for row in self.rows for panel in row.panels]

    def to_image(self) -> Image.Image:
        """Draw all panels and the legend on white. Consecutive rows with equal titles share one line of titles."""
        parts = []
        for titles, group in groupby(self.rows, lambda row: row.titles):
            rows = list(group)
            images = [[panel.resized(self.side) for panel in row.panels] for row in rows]
            parts.append(render_grid(images, titles, [row.caption for row in rows]))
        notes = (*self.notes, *self.warnings)
        drawn = stack(parts)
        if self.legend or self.hatched or notes:
            return add_legend(drawn, self.legend, self.hatched, notes)
        return drawn

    def _repr_html_(self) -> str:
        heading = f"<div><strong>{escape(self.heading)}</strong></div>" if self.heading else ""
        rows = "".join(self._columns() if self.aligned else self._rows())
        names = "".join(map(_swatch, self.legend))
        hatched = [f"hatched: {self.hatched}"] if self.hatched else []
        notes = "".join(f"<div>{escape(note)}</div>" for note in (*hatched, *self.notes, *self.warnings))
        return f"<div>{heading}<div>{rows}</div><div>{names}</div>{notes}</div>"

    def _rows(self) -> Iterator[str]:
        for row in self.rows:
            yield f"<div>{escape(row.caption)}</div>" if row.caption else ""
            yield from (panel.html(self.side) for panel in row.panels)

    def _columns(self) -> Iterator[str]:
        for column in zip(*(row.panels for row in self.rows), strict=True):
            panels = "".join(f"<div>{panel.html(self.side)}</div>" for panel in column)
            yield f'<div style="{_COLUMN}">{panels}</div>'


def _swatch(entry: LegendEntry) -> str:
    red, green, blue = entry.color
    square = f'<span style="{_SWATCH};background-color:rgb({red},{green},{blue})"></span>'
    text = escape(entry.text) + " (unseen)" * entry.unseen
    return f'<span style="display:inline-block;margin-right:1em">{square}{text}</span>'
