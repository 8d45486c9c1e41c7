"""The area of each class in a segmented image, as numbers and as text."""

import unicodedata
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int, UInt8

from trainer.segmenter import Vocabulary
from viewer.class_colors import class_colors
from viewer.legend import LegendEntry


@dataclass(frozen=True)
class ClassArea:
    """The area of a class: its index, pixels, share of the image (0..1), and their mean probability (None without).

    `unseen` is whether the class had no labels in training.
    """

    index: int
    pixels: int
    share: float
    score: float | None
    unseen: bool


@dataclass(frozen=True)
class SegmentedImage:
    """An image with the number of pixels of each class and their mean score.

    `file` is its path below the input folder; output files append a suffix to it.
    """

    file: str
    height: int
    width: int
    vocabulary: Vocabulary = field(repr=False)
    pixels: Int[np.ndarray, "class"]
    scores: Float[np.ndarray, "class"]

    def areas(self, least: int = 0) -> dict[str, ClassArea]:
        """The area of each class that covers at least `least` pixels, in class order."""
        total = self.height * self.width
        return {
            name: ClassArea(
                index,
                count := int(self.pixels[index]),
                round(count / total, 6),
                round(float(self.scores[index]), 4) if count else None,
                bool(~self.vocabulary.labelled[index]),
            )
            for index, name in enumerate(self.vocabulary.split.classes)
            if self.pixels[index] >= least
        }

    @property
    def present(self) -> dict[str, ClassArea]:
        """The area of each class that is present, the largest first."""
        return dict(sorted(self.areas(1).items(), key=lambda item: -item[1].pixels))

    def legend(self, ascii_only: bool = True) -> list[LegendEntry]:
        """The classes present with their share in percent, the largest first; by default in characters of the font."""
        return [
            LegendEntry(
                f"{_to_ascii(name, area.index) if ascii_only else name} {_share(area)}",
                self.colors[area.index],
                area.unseen,
            )
            for name, area in self.present.items()
        ]

    @property
    def colors(self) -> UInt8[np.ndarray, "class 3"]:
        """The color of each class."""
        return class_colors(self.vocabulary.split.classes)

    def __str__(self) -> str:
        """The classes present on one line."""
        present = (f"{name}{' (unseen)' * area.unseen} {_share(area)}" for name, area in self.present.items())
        return f"{self.file}: {', '.join(present)}"


def _share(area: ClassArea) -> str:
    share = 100 * area.share
    return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"


def _to_ascii(name: str, index: int) -> str:
    # Pillow's default font has ASCII only: accents are dropped, and a name in another script becomes its index
    decomposed = unicodedata.normalize("NFKD", name)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return plain if plain.isascii() else f"class {index}"
