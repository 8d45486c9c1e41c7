"""The results of a segmented photo as files: an overlay, an index map, and the areas of the classes."""

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
class Segmented:
    """A photo and the number of pixels of each class.

    `file` is its name below the input folder; the names of the results are this name with a suffix.
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
        """The classes present with their share in per cent, in descending order, in characters that the font has."""
        present = ((_drawable(name, area["index"]), area) for name, area in self._present())
        return {area["index"]: f"{name} {_share(area)}" for name, area in present}

    def __str__(self) -> str:
        """The classes present on one line."""
        present = (f"{name}{' (unseen)' * area['unseen']} {_share(area)}" for name, area in self._present())
        return f"{self.file}: {', '.join(present)}"

    def _present(self) -> list[tuple[str, dict[str, Any]]]:
        return sorted(self.areas(1).items(), key=lambda item: -item[1]["pixels"])


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Args:
        out: the folder.
        vocabulary: the classes.
        settings: what every file of areas also contains.

    """

    out: Path
    vocabulary: Vocabulary
    settings: Mapping[str, Any]

    def write(
        self,
        photograph: Path,
        name: str,
        image: UInt8[np.ndarray, "height width 3"],
        found: Int[np.ndarray, "height width"],
    ) -> Segmented:
        """Write the results of a photo; `name` is its name below the input folder.

        For `a/b.jpg`: `a/b.jpg.overlay.png`; `a/b.jpg.index.png`, whose pixels are indices into the list of classes (8
        bits, 16 above 255 classes); and last `a/b.jpg.areas.json`. Both maps have the size of the upright photo.
        """
        height, width = found.shape
        counts = np.bincount(found.ravel(), minlength=len(self.vocabulary.split.classes))
        segmented = Segmented(name, height, width, self.vocabulary, counts)
        stem = self.out / name
        index, drawn, areas = (stem.with_name(stem.name + ending) for ending in (INDEX, OVERLAY, AREAS))
        with atomic_write(index) as draft:
            Image.fromarray(found.astype(np.uint8 if len(counts) <= VOID else np.uint16)).save(draft, "PNG")
        unlabelled = np.flatnonzero(~self.vocabulary.labelled).tolist()
        with atomic_write(drawn) as draft:
            render_overlay(image, found, segmented.legend(), unlabelled).save(draft, "PNG")
        about = {"file": str(photograph), "height": height, "width": width, "overlay": drawn.name, "index": index.name}
        about |= {"areas": segmented.areas(), "settings": dict(self.settings)}
        with atomic_write(areas) as draft:
            draft.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return segmented


def _share(area: Mapping[str, Any]) -> str:
    share = 100 * area["share"]
    return f"{share:.1f} %" if share >= 0.05 else "< 0.1 %"


def _drawable(name: str, index: int) -> str:
    # Pillow's own font has ASCII only: accents are dropped, and a name in another script is replaced by its index
    plain = unicodedata.normalize("NFKD", name)
    kept = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return kept if kept.isascii() else f"class {index}"
