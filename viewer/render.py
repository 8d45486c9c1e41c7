"""Draws panels with titles, captions and a legend as one image. Long texts are wrapped, never cut off."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from viewer.legend import LegendEntry
from viewer.palette import BLANK, hatch, overlay, paint_labels

GAP, HEADER, LINE_HEIGHT = 8, 22, 17
NARROWEST = 96
"""Minimum width of a column in pixels, which leaves space for its title."""
LEGEND = 320
"""Minimum width of a legend in pixels."""
FONT_SIZE = 13
"""Default font size of a legend in pixels."""
LETTERS_ACROSS = 60
"""Width of an image divided by the font size of its legend, if the font grows with the image."""
SEEN, UNSEEN = "seen classes", "unseen classes (framed): no labels in training"


@dataclass(frozen=True)
class _TextStyle:
    """Lengths in pixels that scale with the font size."""

    font_size: int = FONT_SIZE

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        return ImageFont.load_default(self.font_size)

    @property
    def gap(self) -> int:
        return self._scale(GAP)

    @property
    def line_height(self) -> int:
        return self._scale(LINE_HEIGHT)

    @property
    def box(self) -> int:
        return self.font_size + 1

    def _scale(self, length: int) -> int:
        return round(length * self.font_size / FONT_SIZE)


def fit_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The size (height, width) of an image scaled to a longer side of `side` pixels."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: UInt8[np.ndarray, "y x 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Resize an image to `size` (height, width) with antialiasing. Label maps are painted at their final size."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def render_grid(
    rows: Sequence[Sequence[Image.Image]], titles: Sequence[str], captions: Sequence[str] = ()
) -> Image.Image:
    """Draw rows of panels below the titles of their columns, each row below its caption if it has one."""
    columns = list(zip(*rows, strict=True)) or [()] * len(titles)
    widths = [max(NARROWEST, *(panel.width for panel in column), 0) for column in columns]
    left = [GAP + sum(widths[:column]) + GAP * column for column in range(len(titles) + 1)]
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    headers = [_wrap(title, width, font) for title, width in zip(titles, widths, strict=True)]
    captioned = any(captions)
    texts = [_wrap(caption, left[-1] - 2 * GAP, small) for caption in captions] if captioned else [[]] * len(rows)
    top = [HEADER + LINE_HEIGHT * (max(map(len, headers)) - 1) + 4 * captioned]
    for row, lines in zip(rows, texts, strict=True):
        top.append(top[-1] + LINE_HEIGHT * len(lines) + max(panel.height for panel in row) + GAP)
    canvas = Image.new("RGB", (left[-1], top[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(headers):
        _write(draw, (left[column], 4), lines, font)
    for row, panels in enumerate(rows):
        _write(draw, (GAP, top[row]), texts[row], small, "dimgray")
        for column, panel in enumerate(panels):
            canvas.paste(panel, (left[column], top[row] + LINE_HEIGHT * len(texts[row])))
    return canvas


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Stack images vertically on white."""
    canvas = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), "white")
    top = 0
    for picture in pictures:
        canvas.paste(picture, (0, top))
        top += picture.height
    return canvas


def add_legend(
    picture: Image.Image,
    legend: Sequence[LegendEntry],
    hatched: str = "",
    notes: Sequence[str] = (),
    font_size: int = FONT_SIZE,
) -> Image.Image:
    """Add a legend below an image: a color and name per class, the meaning of hatched area if any, and notes.

    Unseen classes are framed and listed separately. Long lines are wrapped.
    """
    style = _TextStyle(font_size)
    width = max(LEGEND, picture.width)
    seen, unseen = [[entry for entry in legend if entry.unseen is framed] for framed in (False, True)]
    parts = [
        picture,
        _entries(seen, width, style, SEEN if unseen else ""),
        _entries(unseen, width, style, UNSEEN),
        _entries([LegendEntry(hatched, None)] if hatched else [], width, style),
        *(_text(note, width, style) for note in notes),
        Image.new("RGB", (width, style.gap), "white"),
    ]
    return stack(parts)


def render_overlay(
    image: UInt8[np.ndarray, "height width 3"],
    label: Int[np.ndarray, "height width"],
    colors: UInt8[np.ndarray, "class 3"],
    legend: Sequence[LegendEntry],
) -> Image.Image:
    """A label map over the image in gray, with a legend in a font that grows with the image."""
    painted = overlay(image, paint_labels(label, -1, colors, label.shape))
    font_size = max(FONT_SIZE, image.shape[1] // LETTERS_ACROSS)
    return add_legend(Image.fromarray(painted), legend, font_size=font_size)


def _entries(legend: Sequence[LegendEntry], width: int, style: _TextStyle, heading: str = "") -> Image.Image:
    """Swatches with names in as many columns as fit, below a heading; an image of height 0 without names."""
    if not legend:
        return Image.new("RGB", (width, 0), "white")
    font, box, gap = style.font, style.box, style.gap
    inset, available = round(1.4 * box), width - 2 * gap
    column = min(available, inset + max(round(font.getlength(entry.text)) for entry in legend) + 2 * gap)
    texts = [_wrap(entry.text, column - inset - gap, font) for entry in legend]
    across = max(1, available // column)
    rows = [texts[start : start + across] for start in range(0, len(texts), across)]
    heights = [style.line_height * max(map(len, row)) + 4 for row in rows]
    title = _text(heading, width, style) if heading else Image.new("RGB", (width, 0), "white")
    canvas = Image.new("RGB", (width, title.height + sum(heights)), "white")
    canvas.paste(title)
    draw = ImageDraw.Draw(canvas)
    for index, (entry, text) in enumerate(zip(legend, texts, strict=True)):
        left, top = gap + index % across * column, title.height + sum(heights[: index // across])
        canvas.paste(Image.fromarray(swatch(entry.color, box)), (left, top + 1))
        if entry.unseen:
            draw.rectangle((left, top + 1, left + box - 1, top + box), outline="black", width=max(2, box // 7))
        _write(draw, (left + inset, top), text, font, "black", style.line_height)
    return canvas


def swatch(color: UInt8[np.ndarray, "3"] | None, side: int = FONT_SIZE + 1) -> UInt8[np.ndarray, "side side 3"]:
    """A small square of a color; hatched for None."""
    square = np.empty((side, side, 3), np.uint8)
    square[:] = BLANK if color is None else color
    return hatch(square, np.full((side, side), color is None))


def _text(text: str, width: int, style: _TextStyle) -> Image.Image:
    lines = _wrap(text, width - 2 * style.gap, style.font)
    canvas = Image.new("RGB", (width, style.line_height * len(lines) + 4), "white")
    _write(ImageDraw.Draw(canvas), (style.gap, 0), lines, style.font, "dimgray", style.line_height)
    return canvas


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    fill: str = "black",
    line_height: int = LINE_HEIGHT,
) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + line_height * number), line, fill=fill, font=font)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Wrap a text into lines of at most `width` pixels; a word longer than a line is broken."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [""] * bool(lines[-1])
        for letter in word:
            lines += [""] * (lines[-1] != "" and font.getlength(lines[-1] + letter) > width)
            lines[-1] += letter
    return lines
