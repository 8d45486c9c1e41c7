"""Annotated regions, and how they are drawn into a label map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from data_cache.datasets.base import VOID
from data_cache.errors import UserError

MAX_PIXELS = 2**28
"""More than any photo has: a file that claims a larger mask is damaged."""
_ROUND = np.linspace(0, 2 * np.pi, 180, endpoint=False)

Polygon = Float[np.ndarray, "corner 2"]
"""The (x, y) corners of a polygon in pixels; (0, 0) is the top left corner of the image, not a pixel's center."""


class Patch(NamedTuple):
    """A mask whose top left pixel is at (left, top) of the image. It may extend beyond the image."""

    left: int
    top: int
    mask: Bool[np.ndarray, "y x"]


class Region(NamedTuple):
    """An area of one class: the union of polygons, or a mask that is decoded only when it is drawn."""

    name: str
    area: Sequence[Polygon] | Callable[[], Patch]


class Drawing(NamedTuple):
    """A label map, and what could not be drawn into it."""

    label: UInt8[np.ndarray, "height width"]
    problems: tuple[str, ...]


class AnnotatedImage(Protocol):
    """An image that an export names, with its annotations."""

    @property
    def file(self) -> str:
        """Its path in the export, with forward slashes."""

    def draw(self, height: int, width: int, ids: Mapping[str, int]) -> Drawing:
        """The label map of the image of this size; names without an id become 255. Raises UserError."""


@dataclass(frozen=True)
class RegionImage:
    """An image with regions, in the order in which they are drawn: later ones cover earlier ones.

    `size` is (width, height) as the export has it, and `skipped` says what was left out.
    """

    file: str
    size: tuple[int, int] | None
    regions: tuple[Region, ...]
    skipped: tuple[str, ...] = ()

    def draw(self, height: int, width: int, ids: Mapping[str, int]) -> Drawing:
        """Draw the regions; everything else is 255. Raises UserError if the image has another size."""
        if self.size and self.size != (width, height):
            turned = ", as if its EXIF orientation had been ignored" if self.size == (height, width) else ""
            raise UserError(
                f"the image is {width} x {height}, but {self.size[0]} x {self.size[1]} in the annotations{turned}"
            )
        label, problems = np.full((height, width), VOID, np.uint8), list(self.skipped)
        for region in self.regions:
            try:
                patches = (
                    [region.area()] if callable(region.area) else [fill(one, height, width) for one in region.area]
                )
            except ValueError as error:
                problems.append(f"a region of '{region.name}' is skipped: {error}")
                continue
            painted = [_paint(label, patch, ids.get(region.name, VOID)) for patch in patches]
            if not any(painted):
                problems.append(f"a region of '{region.name}' is skipped: it covers no pixel of the image")
        return Drawing(label, tuple(problems))


def _paint(label: UInt8[np.ndarray, "height width"], patch: Patch, value: int) -> bool:
    """Set the pixels under a patch; whether there are any."""
    left, top, mask = patch
    mask = mask[max(0, -top) :, max(0, -left) :]
    target = label[max(0, top) :, max(0, left) :][: mask.shape[0], : mask.shape[1]]
    mask = mask[: target.shape[0], : target.shape[1]]
    target[mask] = value
    return bool(mask.any())


def fill(polygon: Polygon, height: int, width: int) -> Patch:
    """The pixels of an image whose centers are inside a polygon, by the even-odd rule.

    Raises ValueError for fewer than three corners, or coordinates that are not finite.
    """
    if len(polygon) < 3:
        raise ValueError(f"a polygon of {len(polygon)} points has no area")
    if not np.isfinite(polygon).all():
        raise ValueError("its coordinates are not finite")
    (left, top), (right, bottom) = (
        np.clip(corner, 0, (width, height)).astype(int)
        for corner in (np.floor(polygon.min(0)), np.ceil(polygon.max(0)))
    )
    crossed = np.zeros((bottom - top, right - left + 1), bool)
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        first, last = (np.clip(np.ceil(y - 0.5), top, bottom).astype(int) for y in sorted((y0, y1)))
        rows = np.arange(first, last)
        if rows.size:
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows - top, np.clip(np.ceil(x - 0.5), left, right).astype(int) - left] ^= True
    return Patch(int(left), int(top), np.logical_xor.accumulate(crossed, axis=1)[:, :-1])


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """The corners of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Polygon:
    """A polygon of 180 corners on an ellipse."""
    return np.stack([x + radius_x * np.cos(_ROUND), y + radius_y * np.sin(_ROUND)], axis=1)


def rotated(polygon: Polygon, degrees: float) -> Polygon:
    """A polygon, turned clockwise around the center of its bounding box."""
    center, angle = (polygon.min(0) + polygon.max(0)) / 2, np.deg2rad(degrees)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
    return (polygon - center) @ turn + center


def area_of(polygon: Polygon) -> float:
    """The area of a polygon without self-intersections, in pixels."""
    (x, y), (next_x, next_y) = polygon.T, np.roll(polygon, -1, axis=0).T
    return abs(float((x * next_y - next_x * y).sum())) / 2


def decode_runs(
    runs: Sequence[int], height: int, width: int, by_column: bool = False
) -> Bool[np.ndarray, "height width"]:
    """The mask whose pixels, row by row or column by column, are runs of alternately False and True.

    Raises ValueError if the lengths of the runs do not add up to the number of pixels.
    """
    lengths: Int[np.ndarray, "run"] = np.asarray(runs, np.int64)
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"its size is {width} x {height}")
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError("its run-length encoding does not match its size")
    pixels = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return pixels.reshape(width, height).T if by_column else pixels.reshape(height, width)
