"""A sheet of panels to look at, and the legend below it."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from data_cache.colours import colour_of

GAP, HEADER = 8, 22


def sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "height width 3"]]], titles: Sequence[str], side: int
) -> Image.Image:
    """Draw rows of panels, each scaled to side x side pixels without blending, below their column titles."""
    width = len(titles) * (side + GAP) + GAP
    canvas = Image.new("RGB", (width, HEADER + len(rows) * (side + GAP) + GAP), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(14)
    for column, title in enumerate(titles):
        draw.text((GAP + column * (side + GAP), 4), title, fill="black", font=font)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            picture = Image.fromarray(panel).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(picture, (GAP + column * (side + GAP), HEADER + row * (side + GAP)))
    return canvas


def rows_of(
    panels: Sequence[UInt8[np.ndarray, "height width 3"]], titles: Sequence[str], side: int, columns: int
) -> Image.Image:
    """Draw any number of panels in rows of `columns`, each below its own title."""
    starts = range(0, len(panels), columns)
    rows = [sheet([panels[i : i + columns]], titles[i : i + columns], side) for i in starts]
    canvas = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        canvas.paste(row, (0, top))
        top += row.height
    return canvas


def legend(picture: Image.Image, names: Mapping[int, str]) -> Image.Image:
    """Add the colours of some labels with their names below a picture."""
    font, box = ImageFont.load_default(13), 14
    width = GAP + 2 * box + max(round(font.getlength(name)) for name in names.values())
    columns = max(1, (picture.width - GAP) // width)
    lines = -(-len(names) // columns)
    canvas = Image.new("RGB", (picture.width, picture.height + lines * HEADER + GAP), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for place, (label, name) in enumerate(names.items()):
        left, top = GAP + place % columns * width, picture.height + place // columns * HEADER
        draw.rectangle((left, top, left + box, top + box), fill=tuple(colour_of(label).tolist()))
        draw.text((left + box + 6, top - 1), name, fill="black", font=font)
    return canvas
