"""A sheet of panels to look at, and the legend below it: nothing is cut off, however long the names are."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from data_cache.colours import NOTHING, colour_of, hatch

GAP, HEADER, LEADING = 8, 22, 17
NARROWEST = 96
"""Width in pixels that a column has for its title, however narrow its panels are."""
LEGEND = 320
"""Width in pixels that a legend has, however narrow the picture above it is."""
LETTERS = 13
"""Height in pixels of a legend's letters, unless the picture asks for larger ones."""
SEEN, UNSEEN = "seen classes", "unseen classes (framed): no labels in training"


@dataclass(frozen=True)
class _Hand:
    """The sizes in pixels of what is written in letters of `letters` pixels."""

    letters: int = LETTERS

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        return ImageFont.load_default(self.letters)

    @property
    def gap(self) -> int:
        return self._of(GAP)

    @property
    def leading(self) -> int:
        return self._of(LEADING)

    @property
    def box(self) -> int:
        return self.letters + 1

    def _of(self, length: int) -> int:
        return round(length * self.letters / LETTERS)


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """The size (height, width) of a picture scaled to fit into side x side pixels, its aspect ratio kept."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaled(image: UInt8[np.ndarray, "y x 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """A photograph at `size` (height, width), properly filtered; a label map is to be painted at its size instead."""
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "height width 3"]]],
    titles: Sequence[str],
    side: int,
    captions: Sequence[str] = (),
) -> Image.Image:
    """Draw rows of panels below their column titles, each row below its caption if there are any.

    A panel keeps its aspect ratio. One whose longer side is `side` is drawn as it is; any other is scaled as a
    photograph to be so.
    """
    rows = [[scaled(panel, fitted(*panel.shape[:2], side)) for panel in row] for row in rows]
    columns = list(zip(*rows, strict=True)) or [()] * len(titles)
    widths = [max(NARROWEST, *(panel.shape[1] for panel in column), 0) for column in columns]
    left = [GAP + sum(widths[:column]) + GAP * column for column in range(len(titles) + 1)]
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    headers = [_wrapped(title, width, font) for title, width in zip(titles, widths, strict=True)]
    told = [_wrapped(caption, left[-1] - 2 * GAP, small) for caption in captions] or [[]] * len(rows)
    top = [HEADER + LEADING * (max(map(len, headers)) - 1) + (4 if captions else 0)]
    for row, lines in zip(rows, told, strict=True):
        top.append(top[-1] + LEADING * len(lines) + max(panel.shape[0] for panel in row) + GAP)
    canvas = Image.new("RGB", (left[-1], top[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for column, lines in enumerate(headers):
        _write(draw, (left[column], 4), lines, font)
    for row, panels in enumerate(rows):
        _write(draw, (GAP, top[row]), told[row], small, "dimgrey")
        for column, panel in enumerate(panels):
            canvas.paste(Image.fromarray(panel), (left[column], top[row] + LEADING * len(told[row])))
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


def legend(
    picture: Image.Image,
    names: Mapping[int, str],
    unseen: Collection[int] = (),
    nothing: str = "",
    notes: Sequence[str] = (),
    letters: int = LETTERS,
) -> Image.Image:
    """Add the colours of some labels with their names below a picture, in letters of so many pixels.

    Labels in `unseen` come apart from the others, in frames; `nothing` says what hatched area is, if there is any;
    notes come last. Whatever is too long for a line goes on in the next.
    """
    hand = _Hand(letters)
    width = max(LEGEND, picture.width)
    kinds = {SEEN: [label for label in names if label not in unseen], UNSEEN: [i for i in names if i in unseen]}
    drawn = [_entries({label: names[label] for label in kinds[SEEN]}, width, hand, SEEN if unseen else "")]
    drawn.append(_entries({label: names[label] for label in kinds[UNSEEN]}, width, hand, UNSEEN, framed=True))
    drawn.append(_entries({None: nothing} if nothing else {}, width, hand, ""))
    drawn += [_text(note, width, hand) for note in notes]
    canvas = Image.new("RGB", (width, picture.height + sum(part.height for part in drawn) + hand.gap), "white")
    canvas.paste(picture)
    top = picture.height
    for part in drawn:
        canvas.paste(part, (0, top))
        top += part.height
    return canvas


def _entries(
    names: Mapping[int | None, str], width: int, hand: _Hand, heading: str, framed: bool = False
) -> Image.Image:
    """Swatches with names in as many columns as fit, below a heading; of no height if there is nothing to tell."""
    if not names:
        return Image.new("RGB", (width, 0), "white")
    font, box, gap = hand.font, hand.box, hand.gap
    inset, room = round(1.4 * box), width - 2 * gap
    column = min(room, inset + max(round(font.getlength(name)) for name in names.values()) + 2 * gap)
    told = [_wrapped(name, column - inset - gap, font) for name in names.values()]
    across = max(1, room // column)
    lines = [told[start : start + across] for start in range(0, len(told), across)]
    heights = [hand.leading * max(map(len, row)) + 4 for row in lines]
    title = _text(heading, width, hand) if heading else Image.new("RGB", (width, 0), "white")
    canvas = Image.new("RGB", (width, title.height + sum(heights)), "white")
    canvas.paste(title)
    draw = ImageDraw.Draw(canvas)
    for place, (label, text) in enumerate(zip(names, told, strict=True)):
        left, top = gap + place % across * column, title.height + sum(heights[: place // across])
        canvas.paste(Image.fromarray(swatch(label, box)), (left, top + 1))
        if framed:
            draw.rectangle((left, top + 1, left + box - 1, top + box), outline="black", width=max(2, box // 7))
        _write(draw, (left + inset, top), text, font, "black", hand.leading)
    return canvas


def swatch(label: int | None, side: int = LETTERS + 1) -> UInt8[np.ndarray, "side side 3"]:
    """A small square in the colour of a label; hatched for None."""
    square = np.empty((side, side, 3), np.uint8)
    square[:] = NOTHING if label is None else colour_of(label)
    return hatch(square, np.full((side, side), label is None))


def _text(text: str, width: int, hand: _Hand) -> Image.Image:
    lines = _wrapped(text, width - 2 * hand.gap, hand.font)
    canvas = Image.new("RGB", (width, hand.leading * len(lines) + 4), "white")
    _write(ImageDraw.Draw(canvas), (hand.gap, 0), lines, hand.font, "dimgrey", hand.leading)
    return canvas


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    fill: str = "black",
    leading: int = LEADING,
) -> None:
    for number, line in enumerate(lines):
        draw.text((corner[0], corner[1] + leading * number), line, fill=fill, font=font)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """A text in lines of at most `width` pixels; a word longer than a line is broken."""
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
