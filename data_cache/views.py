"""Views: the crops of an image that cached features describe. `data_cache.sample` crops and resamples the pixels."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from data_cache.errors import UsageError, UserError

ATTEMPTS = 10
RESIZE_FILTER = "torch bicubic-antialias"
"""Part of the fingerprint: another filter, or another library's version of it, gives CLIP other pixels."""


@dataclass(frozen=True)
class View:
    """A crop of an image, (top, left, bottom, right) in image pixels, and whether it is flipped horizontally."""

    box: tuple[int, int, int, int]
    flip: bool = False

    @classmethod
    def stored(cls, box: Int[np.ndarray, "4"], flip: bool) -> "View":
        """The view of a box and a flip as stored in a cache."""
        top, left, bottom, right = (int(edge) for edge in box)
        return cls((top, left, bottom, right), bool(flip))

    def crop(self, pixels: Shaped[np.ndarray, "height width *channel"]) -> Shaped[np.ndarray, "y x *channel"]:
        """The view's pixels, not resampled."""
        top, left, bottom, right = self.box
        crop = pixels[top:bottom, left:right]
        return np.ascontiguousarray(crop[:, ::-1]) if self.flip else crop


def whole(height: int, width: int) -> View:
    """View 0 of every image: the whole image, not flipped."""
    return View((0, 0, height, width))


@dataclass(frozen=True)
class Cropping:
    """The views of an image: view 0 is the whole image, the others are random crops, half of them flipped.

    Args:
        count: views per image, V.
        seed: seed of the crops. A crop depends only on it, the image's id and size, and the view's number.
        scale: smallest and largest crop area, as a fraction of the image's.
        ratio: smallest and largest aspect ratio (width / height) of a crop.

    Raises UsageError for a count below one, a negative seed or an invalid range.

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
                raise UsageError(f"--view-{name} {low:g},{high:g}: must be two increasing numbers {limits}")

    def views(self, name: str, height: int, width: int) -> list[View]:
        """The views of the image with this id and size."""
        return [whole(height, width), *(self._crop(name, k, height, width) for k in range(1, self.count))]

    def fingerprint(self) -> dict[str, Any]:
        """The settings that change a cache's numbers; those of random crops count only if there are any."""
        crops = {"seed": self.seed, "scale": list(self.scale), "ratio": list(self.ratio)} if self.count > 1 else {}
        return {"count": self.count, "resize": RESIZE_FILTER, **crops}

    @classmethod
    def stored(cls, fingerprint: Mapping[str, Any]) -> "Cropping":
        """The cropping recorded in a fingerprint."""
        settings = {name: fingerprint[name] for name in ("count", "seed", "scale", "ratio") if name in fingerprint}
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()})

    def _crop(self, name: str, number: int, height: int, width: int) -> View:
        rng = np.random.default_rng((self.seed, zlib.crc32(name.encode()), number))
        flip = bool(rng.random() < 0.5)
        for _ in range(ATTEMPTS):
            area = rng.uniform(*self.scale) * height * width
            ratio = np.exp(rng.uniform(*np.log(self.ratio)))
            crop_width, crop_height = max(1, round((area * ratio) ** 0.5)), max(1, round((area / ratio) ** 0.5))
            if crop_width <= width and crop_height <= height:
                top, left = int(rng.integers(height - crop_height + 1)), int(rng.integers(width - crop_width + 1))
                return View((top, left, top + crop_height, left + crop_width), flip)
        # no crop of an allowed shape fits a very long image: take its center, as square as possible
        crop_width = min(width, max(1, round(height * self.ratio[1])))
        crop_height = min(height, max(1, round(width * (1 / self.ratio[0]))))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
        return View((top, left, top + crop_height, left + crop_width), flip)


def check_resampling(cache: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raise UserError if a cache's views were resampled by another filter and so cannot be reproduced."""
    resize = fingerprint.get("views", {}).get("resize")
    if resize != RESIZE_FILTER:
        raise UserError(
            f"{cache}: its views were resampled by '{resize}', and this version's '{RESIZE_FILTER}' gives other "
            "pixels; run `precompute` again into another --cache"
        )
