"""The output files of a segmented image: an overlay, an index map, and the area of each class."""

import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from data_cache.datasets.base import VOID
from data_cache.system.atomic import atomic_write
from trainer.segmenter import Vocabulary
from viewer.render import render_overlay

OVERLAY, INDEX, AREAS = ".overlay.png", ".index.png", ".areas.json"


@dataclass(frozen=True)
class SegmentedImage:
    """An image and the number of pixels of each class.

    `file` is its path below the input folder; output files append a suffix to it.
    """

    file: str
    height: int
    width: int
    vocabulary: Vocabulary = field(repr=False)
    pixels: Int[np.ndarray, "class"]

    def areas(self, least: int = 0) -> dict[str, dict[str, Any]]:
        """Index, pixels and share (0..1) of each class that covers at least `least` pixels, in class order."""
        unseen = ~self.vocabulary.labelled
        return {
            name: {
                "index": index,
                "pixels": (count := int(self.pixels[index])),
                "share": round(count / (self.height * self.width), 6),
                "unseen": bool(unseen[index]),
            }
            for index, name in enumerate(self.vocabulary.split.classes)
            if self.pixels[index] >= least
        }

    def legend(self) -> dict[int, str]:
        """The classes present with their share in percent, in descending order and in characters of the font."""
        present = ((_to_ascii(name, area["index"]), area) for name, area in self._present())
        return {area["index"]: f"{name} {_share(area)}" for name, area in present}

    def __str__(self) -> str:
        """The classes present on one line."""
        present = (f"{name}{' (unseen)' * area['unseen']} {_share(area)}" for name, area in self._present())
        return f"{self.file}: {', '.join(present)}"

    def _present(self) -> list[tuple[str, dict[str, Any]]]:
        return sorted(self.areas(1).items(), key=lambda item: -item[1]["pixels"])


@dataclass(frozen=True)
class ResultWriter:
    """Writes the output files of segmented images.

    Args:
        out: the output folder.
        vocabulary: the classes.
        settings: written into every areas file.

    """

    out: Path
    vocabulary: Vocabulary
    settings: Mapping[str, Any]

    def write(
        self,
        file: Path,
        name: str,
        image: UInt8[np.ndarray, "height width 3"],
        predicted: Int[np.ndarray, "height width"],
    ) -> SegmentedImage:
        """Write the output files of an image; `name` is its path below the input folder.

        For `a/b.jpg`: `a/b.jpg.overlay.png`; `a/b.jpg.index.png`, whose pixels are class indices (8 bits, 16 above 255
        classes); and last `a/b.jpg.areas.json`. Both maps have the size of the upright image.
        """
        height, width = predicted.shape
        counts = np.bincount(predicted.ravel(), minlength=len(self.vocabulary.split.classes))
        segmented = SegmentedImage(name, height, width, self.vocabulary, counts)
        stem = self.out / name
        index, overlay, areas = (stem.with_name(stem.name + suffix) for suffix in (INDEX, OVERLAY, AREAS))
        with atomic_write(index) as draft:
            Image.fromarray(predicted.astype(np.uint8 if len(counts) <= VOID else np.uint16)).save(draft, "PNG")
        unlabelled = np.flatnonzero(~self.vocabulary.labelled).tolist()
        with atomic_write(overlay) as draft:
            render_overlay(image, predicted, segmented.legend(), unlabelled).save(draft, "PNG")
        record = {"file": str(file), "height": height, "width": width, "overlay": overlay.name, "index": index.name}
        record |= {"areas": segmented.areas(), "settings": dict(self.settings)}
        with atomic_write(areas) as draft:
            draft.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return segmented


def _share(area: Mapping[str, Any]) -> str:
    share = 100 * area["share"]
    return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"


def _to_ascii(name: str, index: int) -> str:
    # Pillow's default font has ASCII only: accents are dropped, and a name in another script becomes its index
    decomposed = unicodedata.normalize("NFKD", name)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return plain if plain.isascii() else f"class {index}"
