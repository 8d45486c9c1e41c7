"""Views: the one place that says which pixels of an image a cached feature describes (DESIGN, section 3)."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from data_cache.errors import UsageError

ATTEMPTS = 10
RESIZE_FILTER = "bicubic-antialias"
"""Part of the fingerprint: another filter gives CLIP other pixels."""


@dataclass(frozen=True)
class View:
    """A crop of an image in its own pixels, (top, left, bottom, right), and whether it is mirrored."""

    box: tuple[int, int, int, int]
    flip: bool = False

    @classmethod
    def stored(cls, box: Int[np.ndarray, "4"], flip: bool) -> "View":
        """The view whose geometry a cache holds."""
        top, left, bottom, right = (int(edge) for edge in box)
        return cls((top, left, bottom, right), bool(flip))


def whole(height: int, width: int) -> View:
    """View 0 of every image: all of it, unmirrored."""
    return View((0, 0, height, width))


@dataclass(frozen=True)
class Cropping:
    """Which views an image has: view 0 is the whole image, all others are random crops, half of them mirrored.

    Args:
        count: views an image, V.
        seed: of the crops. A crop depends on this, the image's name and the view's number, and on nothing else.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width / height of a crop in the image's own pixels.

    Raises UsageError for a count below one, or a range that is none.

    """

    count: int = 1
    seed: int = 0
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"--views {self.count}: must be at least 1")
        if self.seed < 0:
            raise UsageError(f"--view-seed {self.seed}: must not be negative")
        for name, (low, high), limit in (("scale", self.scale, 1.0), ("ratio", self.ratio, np.inf)):
            if not (0 < low <= high <= limit and np.isfinite(high)):
                limits = "above 0" + (f", at most {limit:g}" if np.isfinite(limit) else "")
                raise UsageError(f"--view-{name} {low:g},{high:g}: must be two rising numbers {limits}")

    def views(self, name: str, height: int, width: int) -> list[View]:
        """The views of the image of this name and size."""
        return [whole(height, width), *(self._crop(name, k, height, width) for k in range(1, self.count))]

    def fingerprint(self) -> dict[str, Any]:
        """What of it changes the numbers in a cache; how crops are drawn is nothing to a cache without crops."""
        drawn = {"seed": self.seed, "scale": list(self.scale), "ratio": list(self.ratio)} if self.count > 1 else {}
        return {"count": self.count, "resize": RESIZE_FILTER, **drawn}

    @classmethod
    def stored(cls, fingerprint: Mapping[str, Any]) -> "Cropping":
        """The cropping of a fingerprint."""
        drawn = {name: fingerprint[name] for name in ("count", "seed", "scale", "ratio") if name in fingerprint}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in drawn.items()})

    def _crop(self, name: str, number: int, height: int, width: int) -> View:
        rng = np.random.default_rng((self.seed, zlib.crc32(name.encode()), number))
        flip = bool(rng.random() < 0.5)
        for _ in range(ATTEMPTS):
            area = rng.uniform(*self.scale) * height * width
            ratio = np.exp(rng.uniform(*np.log(self.ratio)))
            across, down = max(1, round((area * ratio) ** 0.5)), max(1, round((area / ratio) ** 0.5))
            if across <= width and down <= height:
                top, left = int(rng.integers(height - down + 1)), int(rng.integers(width - across + 1))
                return View((top, left, top + down, left + across), flip)
        # an image so long that no crop of such a shape fits: its middle, as square as allowed
        across, down = (
            min(side, max(1, round(other * edge)))
            for side, other, edge in ((width, height, self.ratio[1]), (height, width, 1 / self.ratio[0]))
        )
        top, left = (height - down) // 2, (width - across) // 2
        return View((top, left, top + down, left + across), flip)


def replay_image(image: UInt8[np.ndarray, "height width 3"], view: View, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Cut a view out of an RGB image and resample it to size x size pixels (bicubic, antialiased)."""
    return _replay(Image.fromarray(image), view, size, Image.Resampling.BICUBIC)


def replay_label(label: UInt8[np.ndarray, "height width"], view: View, size: int) -> UInt8[np.ndarray, "size size"]:
    """Cut the same view out of a label map; every output pixel copies its nearest input pixel."""
    return _replay(Image.fromarray(label), view, size, Image.Resampling.NEAREST)


def _replay(picture: Image.Image, view: View, size: int, resample: Image.Resampling) -> np.ndarray:
    top, left, bottom, right = view.box
    pixels = np.array(picture.resize((size, size), resample, box=(left, top, right, bottom)))
    return np.ascontiguousarray(pixels[:, ::-1]) if view.flip else pixels
