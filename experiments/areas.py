"""What is written of a segmented photograph: a picture to look at, an index map, and the areas of the classes."""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from data_cache.colours import overlay, paint
from data_cache.datasets.base import VOID
from data_cache.show import LETTERS, legend
from trainer.words import Words

OVERLAY, INDEX, AREAS = ".overlay.png", ".index.png", ".areas.json"
LETTERS_ACROSS = 60
"""A picture's width is so many of its legend's letters, that they can be read however large the picture is."""


@dataclass(frozen=True)
class Segmented:
    """A photograph and the pixels of each class in it.

    `file` is the name below the folder that was asked for; those of the results are its name and an ending.
    """

    file: str
    height: int
    width: int
    words: Words = field(repr=False)
    pixels: Int[np.ndarray, "class"]

    def areas(self, least: int = 0) -> dict[str, dict[str, Any]]:
        """Index, pixels and share (0..1) of each class that covers at least so many pixels, in class order."""
        unseen = ~self.words.familiar
        return {
            name: {
                "index": index,
                "pixels": (count := int(self.pixels[index])),
                "share": round(count / (self.height * self.width), 6),
                "unseen": bool(unseen[index]),
            }
            for index, name in enumerate(self.words.split.classes)
            if self.pixels[index] >= least
        }

    def legend(self) -> dict[int, str]:
        """The classes present with their share in per cent, the greatest first, in letters that can be drawn."""
        present = ((_drawable(name, area["index"]), area) for name, area in self._present())
        return {area["index"]: f"{name} {_share(area)}" for name, area in present}

    def __str__(self) -> str:
        """The classes present on one line."""
        told = (f"{name}{' (unseen)' * area['unseen']} {_share(area)}" for name, area in self._present())
        return f"{self.file}: {', '.join(told)}"

    def _present(self) -> list[tuple[str, dict[str, Any]]]:
        return sorted(self.areas(1).items(), key=lambda item: -item[1]["pixels"])


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Args:
        out: the folder.
        words: the classes.
        settings: what every file of areas tells besides.

    """

    out: Path
    words: Words
    settings: Mapping[str, Any]

    def write(
        self,
        photograph: Path,
        name: str,
        image: UInt8[np.ndarray, "height width 3"],
        found: Int[np.ndarray, "height width"],
    ) -> Segmented:
        """Write the results of a photograph; `name` is its own below the folder that was asked for.

        For `a/b.jpg`: `a/b.jpg.overlay.png`; `a/b.jpg.index.png`, whose pixels are places in the list of classes (8
        bits, 16 above 255 classes); and last `a/b.jpg.areas.json`. All have the size of the upright photograph.
        """
        height, width = found.shape
        counts = np.bincount(found.ravel(), minlength=len(self.words.split.classes))
        told = Segmented(name, height, width, self.words, counts)
        stem = self.out / name
        stem.parent.mkdir(parents=True, exist_ok=True)
        index, drawn, areas = (stem.with_name(stem.name + ending) for ending in (INDEX, OVERLAY, AREAS))
        Image.fromarray(found.astype(np.uint8 if len(counts) <= VOID else np.uint16)).save(index)
        picture = Image.fromarray(overlay(image, paint(found, -1, (height, width))))
        new = np.flatnonzero(~self.words.familiar).tolist()
        legend(picture, told.legend(), new, letters=max(LETTERS, width // LETTERS_ACROSS)).save(drawn)
        about = {"file": str(photograph), "height": height, "width": width, "overlay": drawn.name, "index": index.name}
        about |= {"areas": told.areas(), "settings": dict(self.settings)}
        areas.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return told


def _share(area: Mapping[str, Any]) -> str:
    share = 100 * area["share"]
    return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"


def _drawable(name: str, index: int) -> str:
    # Pillow's own font has ASCII alone: accents are dropped, and a name in other letters is told by its index
    plain = unicodedata.normalize("NFKD", name)
    kept = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return kept if kept.isascii() else f"class {index}"
