"""Color-coded label maps: PNG files in which each class has a color, and the table that names the colors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_cache.annotations.regions import Drawing
from data_cache.class_list import read_names
from data_cache.datasets.base import VOID
from data_cache.datasets.decode import decode_image
from data_cache.errors import UserError

Color = tuple[int, int, int]
_NUMBERS = r"(?P<r>\d+)[\s,]+(?P<g>\d+)[\s,]+(?P<b>\d+)"
_LINES = (
    re.compile(rf"(?P<name>[^:;,\t]*[^:;,\t\s])\s*[:;,\t]\s*{_NUMBERS}\s*(:.*)?"),
    re.compile(rf"{_NUMBERS}[\s,:;]+(?P<name>.*\S)"),
)


def read_color_table(file: Path) -> dict[Color, str]:
    """The class of each color: lines such as "road:128,64,128", "road,128,64,128" or "128 64 128 road".

    Lines that start with # and a title such as "name,r,g,b" are skipped. What follows a second colon, as in CVAT's
    labelmap.txt, is ignored. Several colors may have the same class.

    Raises:
        UserError: The file is missing or empty, a line is different, or a color has two classes.

    """
    try:
        lines = read_names(file)
    except FileNotFoundError:
        raise UserError(f"--colors {file}: no such file") from None
    table: dict[Color, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#") or (number == 1 and not re.search(r"\d", line)):
            continue
        match = next(filter(None, (pattern.fullmatch(line) for pattern in _LINES)), None)
        if match is None or max(color := tuple(int(match[part]) for part in "rgb")) > 255:
            raise UserError(
                f"{file}: line {number}: '{line}' is not a color; write it as NAME:RED,GREEN,BLUE (0 to 255)"
            )
        if (known := table.setdefault(color, match["name"])) != match["name"]:
            raise UserError(f"{file}: line {number}: the color of '{match['name']}' is also that of '{known}'")
    if not table:
        raise UserError(f"{file}: has no color; write one line NAME:RED,GREEN,BLUE per class")
    return table


@dataclass(frozen=True)
class ColorCodedImage:
    """The label map of an image, as a PNG file of colors."""

    file: str
    path: Path
    table: Mapping[Color, str]

    def draw(self, height: int, width: int, ids: Mapping[str, int]) -> Drawing:
        """Translate the colors. Raises UserError if a color is not in the table, or the sizes differ."""
        colors = decode_image(self.path).astype(np.uint32)
        if colors.shape[:2] != (height, width):
            raise UserError(f"the image is {width} x {height}, but {self.path} {colors.shape[1]} x {colors.shape[0]}")
        codes, inverse, counts = np.unique(
            colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2], return_inverse=True, return_counts=True
        )
        values = []
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            color = (code >> 16, code >> 8 & 255, code & 255)
            if color not in self.table:
                shown = ",".join(map(str, color))
                raise UserError(f"{self.path}: the color {shown} ({count} pixels) is not in the table of --colors")
            values.append(ids.get(self.table[color], VOID))
        return Drawing(np.array(values, np.uint8)[inverse].reshape(height, width), ())
