"""What a user should know about the images and label maps that were read for another purpose."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from data_cache.datasets.base import VOID
from data_cache.messages import first_names


def _none() -> Int[np.ndarray, "256"]:
    return np.zeros(256, np.int64)


@dataclass(frozen=True)
class Survey:
    """Statistics of some images; surveys can be added.

    Args:
        images: how many.
        labelled: how many of them have a label map.
        pixels: labelled pixels by class id; 255 is void.
        void: ids of the images whose label map holds only void.
        plain: ids of the images with one colour everywhere.

    """

    images: int = 0
    labelled: int = 0
    pixels: Int[np.ndarray, "256"] = field(default_factory=_none)
    void: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, name: str, image: UInt8[np.ndarray, "height width 3"], label: UInt8[np.ndarray, "y x"] | None
    ) -> "Survey":
        """The survey of one image; `image` may be a smaller version of it."""
        plain = (name,) if _is_plain(image) else ()
        if label is None:
            return cls(1, plain=plain)
        # Pillow counts 8-bit numbers several times as fast as numpy
        pixels = np.array(Image.fromarray(label).histogram(), np.int64)
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
        """A sentence for each property that is most likely a mistake."""
        found = [absent_classes(self.pixels, classes, self.labelled)] if self.labelled else []
        if self.void:
            names = first_names(self.void)
            found.append(f"{len(self.void)} of {self.labelled} label maps hold only void (255): {names}")
        if self.plain:
            names = first_names(self.plain)
            found.append(f"{len(self.plain)} of {self.images} images have one colour everywhere: {names}")
        return list(filter(None, found))


def absent_classes(pixels: Int[np.ndarray, "value"], classes: Sequence[str], maps: int) -> str:
    """A sentence on the classes that no pixel of some label maps has; empty if there are none.

    `pixels` counts the pixels of each class id, and possibly of further values.
    """
    absent = [name for name, count in zip(classes, pixels, strict=False) if not count]
    if not absent:
        return ""
    sentence = (
        f"{len(absent)} of {len(classes)} classes have no pixel in the {maps} label maps read: {first_names(absent)}"
    )
    if len(absent) >= len(classes) - 1 and pixels[VOID:].any():
        sentence += "; label value 255, as the white of a 1-bit mask, is void: number the classes 0, 1, .."
    return sentence


def _is_plain(image: UInt8[np.ndarray, "height width 3"]) -> bool:
    few = image[::64, ::64]  # enough to rule out nearly every photo
    return bool((few == image[0, 0]).all() and (image == image[0, 0]).all())
