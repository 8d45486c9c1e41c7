"""Statistics of the images and label maps of a run, and warnings about likely mistakes in them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, UInt8

from data_cache.datasets.base import VOID
from data_cache.messages import first_names

NO_LABELS = "no image has a label map: masks can be computed, but `train` needs labels of the seen classes"


def _no_pixels() -> Int[np.ndarray, "256"]:
    return np.zeros(256, np.int64)


@dataclass(frozen=True)
class Survey:
    """Statistics of images; surveys can be added.

    Args:
        images: number of images.
        labelled: number of images with a label map.
        pixels: number of pixels by class id; 255 is void.
        void: ids of images whose label map has only void.
        plain: ids of images of a single color.

    """

    images: int = 0
    labelled: int = 0
    pixels: Int[np.ndarray, "256"] = field(default_factory=_no_pixels)
    void: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, image: UInt8[np.ndarray, "height width 3"], pixels: Int[np.ndarray, "256"] | None
    ) -> "Survey":
        """The survey of one image, which may be scaled down; `pixels` counts each class id, None without labels."""
        plain = (name,) if _is_plain(image) else ()
        if pixels is None:
            return cls(1, plain=plain)
        return cls(1, 1, pixels, () if pixels[:VOID].any() else (name,), plain)

    def __add__(self, other: "Survey") -> "Survey":
        return Survey(
            self.images + other.images,
            self.labelled + other.labelled,
            self.pixels + other.pixels,
            self.void + other.void,
            self.plain + other.plain,
        )

    def warnings(self, classes: Sequence[str]) -> list[str]:
        """One warning per likely mistake."""
        warnings = [absent_classes(self.pixels, classes, self.labelled)] if self.labelled else []
        if self.void:
            names = first_names(self.void)
            warnings.append(f"{len(self.void)} of {self.labelled} label maps have only void (255): {names}")
        if self.plain:
            names = first_names(self.plain)
            warnings.append(f"{len(self.plain)} of {self.images} images have a single color: {names}")
        return list(filter(None, warnings))


def absent_classes(pixels: Int[np.ndarray, "value"], classes: Sequence[str], maps: int) -> str:
    """A warning about classes without a pixel in `maps` label maps; "" if there are none.

    `pixels` counts the pixels of each class id, and possibly of further values.
    """
    absent = [name for name, count in zip(classes, pixels, strict=False) if not count]
    if not absent:
        return ""
    warning = (
        f"{len(absent)} of {len(classes)} classes have no pixel in the {maps} label maps read: {first_names(absent)}"
    )
    if len(absent) >= len(classes) - 1 and pixels[len(classes) :].any():
        warning += "; label value 255, such as the white of a 1-bit mask, is void: number the classes 0, 1, .."
    return warning


def _is_plain(image: UInt8[np.ndarray, "height width 3"]) -> bool:
    sparse = image[::64, ::64]  # rules out nearly every photo quickly
    return bool((sparse == image[0, 0]).all() and (image == image[0, 0]).all())
