"""Pictures of label maps: stable colours, and a sheet of panels to look at."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

NOTHING = np.array([235, 235, 235], np.uint8)
GAP, HEADER = 8, 22


def colour(label: Shaped[np.ndarray, "height width"], nothing: int) -> UInt8[np.ndarray, "height width 3"]:
    """Colour a label map; a label keeps its colour in every picture; `nothing` is light grey."""
    values = np.unique(label)
    palette = np.stack([NOTHING if value == nothing else _colour_of(int(value)) for value in values])
    return palette[np.searchsorted(values, label)]


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


def legend(picture: Image.Image, names: Sequence[str]) -> Image.Image:
    """Add the colours of labels 0, 1, 2 ... with their names below a picture."""
    font, box = ImageFont.load_default(13), 14
    width = GAP + 2 * box + max(round(font.getlength(name)) for name in names)
    columns = max(1, (picture.width - GAP) // width)
    lines = -(-len(names) // columns)
    canvas = Image.new("RGB", (picture.width, picture.height + lines * HEADER + GAP), "white")
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    for label, name in enumerate(names):
        left, top = GAP + label % columns * width, picture.height + label // columns * HEADER
        draw.rectangle((left, top, left + box, top + box), fill=tuple(_colour_of(label).tolist()))
        draw.text((left + box + 6, top - 1), name, fill="black", font=font)
    return canvas


def _colour_of(label: int) -> UInt8[np.ndarray, "3"]:
    # steps of the golden ratio around the colour wheel keep neighbouring labels apart
    hue = (0.12 + label * 0.61803398875) % 1.0
    value, saturation = (0.95, 0.75, 0.55)[label % 3], (0.65, 0.85)[label % 2]
    channels = [
        value - value * saturation * max(0.0, min(k, 4 - k, 1.0)) for k in ((n + hue * 6) % 6 for n in (5, 3, 1))
    ]
    return np.array([round(255 * c) for c in channels], np.uint8)
