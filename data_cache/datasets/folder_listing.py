"""What a folder of your own images contains: its splits, their images and label values, and what is wrong with them."""

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from data_cache.callbacks import Progress, ProgressBar
from data_cache.datasets.base import VOID
from data_cache.datasets.folder import folder_splits, open_folder, open_unnamed
from data_cache.datasets.paired_files import PairedFiles
from data_cache.datasets.pairing_notes import suffix_of
from data_cache.errors import UserError
from data_cache.messages import count
from data_cache.sample import READERS
from data_cache.survey import NO_LABELS, Survey


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


@dataclass(frozen=True)
class SplitListing:
    """The images of a split.

    Args:
        dataset: the split; without classes.txt, its class names are placeholders.
        survey: the images that can be read.
        maps: number of label maps that have each label value.
        sizes: the sizes of the images.
        failures: why images would fail in `precompute`, by id.

    """

    dataset: PairedFiles = field(repr=False)
    survey: Survey
    maps: Int[np.ndarray, "256"]
    sizes: tuple[Size, ...]
    failures: Mapping[str, str]

    @property
    def labelled(self) -> int:
        """Number of images with a label map."""
        return sum(map(self.dataset.has_label, range(len(self.dataset))))

    @property
    def suffixes(self) -> dict[str, int]:
        """Number of images per file suffix."""
        return dict(sorted(Counter(map(suffix_of, self.dataset.ids)).items()))

    def as_json(self) -> dict[str, Any]:
        """The images and their label maps."""
        return {
            "split": self.dataset.split,
            "images": len(self.dataset),
            "suffixes": self.suffixes,
            "smallest": min(self.sizes, key=np.prod, default=None),
            "largest": max(self.sizes, key=np.prod, default=None),
            "labelled": self.labelled,
            "failures": dict(self.failures),
            "notes": list(self.dataset.notes),
        }

    def __str__(self) -> str:
        kinds = ", ".join(f"{number} {suffix}" for suffix, number in self.suffixes.items())
        line = f"{self.dataset.split}: {count(len(self.dataset), 'image')} ({kinds}), {self.labelled} with a label map"
        if self.sizes:
            smallest, largest = (pick(self.sizes, key=np.prod) for pick in (min, max))
            line += f"; {smallest}" + (f" to {largest}" if smallest != largest else "") + " pixels"
        return line


@dataclass(frozen=True)
class FolderListing:
    """All splits of a folder. `classes` are the names in classes.txt; None if it is missing or has placeholders."""

    root: Path
    classes: tuple[str, ...] | None
    splits: tuple[SplitListing, ...]

    @property
    def survey(self) -> Survey:
        """The images of all splits."""
        return reduce(Survey.__add__, (split.survey for split in self.splits), Survey())

    @property
    def values(self) -> list[int]:
        """The label values that occur, without 255."""
        return np.flatnonzero(self.survey.pixels[:VOID]).tolist()

    @property
    def failures(self) -> dict[str, str]:
        """Why images would fail in `precompute`, by id."""
        return {name: reason for split in self.splits for name, reason in split.failures.items()}

    @property
    def warnings(self) -> list[str]:
        """One sentence per likely mistake."""
        survey = self.survey
        warnings = survey.warnings(self.classes or ()) + ([] if survey.labelled else [NO_LABELS])
        if self.classes is None and survey.pixels[VOID] and self.values in ([], [0]):
            warnings.append(
                "the label maps have only 255 and 0, such as the white and black of a 1-bit mask; 255 is unlabeled: "
                "number the classes 0, 1, .., or name the colors in a table (--colors)"
            )
        return warnings

    def values_table(self) -> list[dict[str, Any]]:
        """Each label value that occurs: its class, its share of all labeled pixels (0..1), and in how many maps it is.

        The row of 255 has no class; its share is of all pixels of the label maps.
        """
        pixels, maps = self.survey.pixels, sum(split.maps for split in self.splits)
        labelled, total = max(1, pixels[:VOID].sum()), max(1, pixels.sum())
        rows = []
        for value in np.flatnonzero(pixels).tolist():
            share = pixels[value] / (total if value == VOID else labelled)
            name = self.classes[value] if self.classes and value != VOID else None
            rows.append({"value": value, "class": name, "share": round(float(share), 6), "maps": int(maps[value])})
        return rows

    def as_json(self) -> dict[str, Any]:
        """Splits, label values and warnings."""
        return {
            "root": str(self.root),
            "classes": None if self.classes is None else list(self.classes),
            "splits": [split.as_json() for split in self.splits],
            "values": self.values_table(),
            "warnings": self.warnings,
        }

    @property
    def lines(self) -> list[str]:
        """One line per split, then one per label value."""
        table = [f"{'label value':>11}  {'pixels':>8}  {'in maps':>7}  class"]
        for row in self.values_table():
            name = "(unlabeled, % of all pixels)" if row["value"] == VOID else row["class"] or "?"
            table.append(f"{row['value']:>11}  {row['share']:>8.1%}  {row['maps']:>7}  {name}")
        return [*map(str, self.splits), *(table if len(table) > 1 else ())]


def list_folder(root: Path, named: bool, progress_bar: ProgressBar) -> FolderListing:
    """Read every image and label map of a folder as `precompute` does, with the names of classes.txt if `named`.

    Raises UserError, UsageError if the folder cannot be opened at all.
    """
    datasets = [(open_folder if named else open_unnamed)(root, split) for split in folder_splits(root)]
    with progress_bar("reading", sum(map(len, datasets)), "images") as advance:
        splits = tuple(_list_split(dataset, advance) for dataset in datasets)
    return FolderListing(root, datasets[0].classes if named else None, splits)


def _list_split(dataset: PairedFiles, advance: Progress) -> SplitListing:
    survey, maps, sizes, failures = Survey(), np.zeros(256, np.int64), [], {}
    with ThreadPoolExecutor(READERS) as pool:
        for name, result in zip(dataset.ids, pool.map(partial(_read, dataset), range(len(dataset))), strict=True):
            advance(1)
            if isinstance(result, str):
                failures[name] = result
                continue
            one, size = result
            survey, maps = survey + one, maps + (one.pixels > 0)
            sizes.append(size)
    return SplitListing(dataset, survey, maps, tuple(sizes), failures)


def _read(dataset: PairedFiles, i: int) -> tuple[Survey, Size] | str:
    """The survey of an image and its size, or why it cannot be used."""
    try:
        sample = dataset.sample(i)
    except UserError as error:
        return str(error)
    height, width, _ = sample.image.shape
    return Survey.of(dataset.ids[i], sample.image, sample.pixels), Size(width, height)
