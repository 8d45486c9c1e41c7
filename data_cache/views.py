"""Views: which pixels of an image a cached feature describes. `data_cache.sample` crops and resamples them."""

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
"""Part of the fingerprint: another filter, or another library's, gives CLIP other pixels."""


@dataclass(frozen=True)
class View:
    """A crop of an image, (top, left, bottom, right) in the image's own pixels, and whether it is mirrored."""

    box: tuple[int, int, int, int]
    flip: bool = False

    @classmethod
    def stored(cls, box: Int[np.ndarray, "4"], flip: bool) -> "View":
        """The view of a box and a flip as a cache stores them."""
        top, left, bottom, right = (int(edge) for edge in box)
        return cls((top, left, bottom, right), bool(flip))

    def crop(self, pixels: Shaped[np.ndarray, "height width *channel"]) -> Shaped[np.ndarray, "y x *channel"]:
        """The view's own pixels, not resampled."""
        top, left, bottom, right = self.box
        crop = pixels[top:bottom, left:right]
        return np.ascontiguousarray(crop[:, ::-1]) if self.flip else crop


def whole(height: int, width: int) -> View:
    """View 0 of every image: all of it, unmirrored."""
    return View((0, 0, height, width))


@dataclass(frozen=True)
class Cropping:
    """Which views an image has: view 0 is the whole image, the others are random crops, half of them mirrored.

    Args:
        count: views per image, V.
        seed: of the crops. A crop depends only on this seed, the image's id and size, and the view's number.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height of a crop in the image's own pixels.

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
                raise UsageError(f"--view-{name} {low:g},{high:g}: must be two rising numbers {limits}")

    def views(self, name: str, height: int, width: int) -> list[View]:
        """The views of the image with this id and size."""
        return [whole(height, width), *(self._crop(name, k, height, width) for k in range(1, self.count))]

    def fingerprint(self) -> dict[str, Any]:
        """The settings that change a cache's numbers; without crops, how crops are drawn is not one of them."""
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
        # no crop of an allowed shape fits a very long image: take its middle, as square as possible
        across, down = (
            min(side, max(1, round(other * edge)))
            for side, other, edge in ((width, height, self.ratio[1]), (height, width, 1 / self.ratio[0]))
        )
        top, left = (height - down) // 2, (width - across) // 2
        return View((top, left, top + down, left + across), flip)


def check_resampling(cache: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raise UserError for a cache whose views were resampled by another filter: they cannot be reproduced."""
    made = fingerprint.get("views", {}).get("resize")
    if made != RESIZE_FILTER:
        raise UserError(
            f"{cache}: its views were resampled by '{made}', and this version's '{RESIZE_FILTER}' gives other pixels; "
            "run `precompute` again into another --cache"
        )
