"""What a dataset is: pairs of images and label maps, and the names of its classes."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import numpy as np
from jaxtyping import Int64, UInt8

from data_cache.datasets.decode import decode_image, decode_label, read_bytes
from data_cache.errors import UserError

VOID = 255
"""Label of a pixel that belongs to no class."""

ILLEGAL = 254
"""Entry of a label table for raw values that the dataset does not define."""

MAX_CLASSES = ILLEGAL
"""Class ids are 0..253: the two values above are taken."""


class Dataset(Protocol):
    """A list of images with label maps where they exist. Datasets pickle: they travel to worker processes."""

    @property
    def name(self) -> str:
        """Name in the registry, such as `coco`."""

    @property
    def root(self) -> Path | None:
        """Folder that holds all its files; None if it is drawn and has none."""

    @property
    def split(self) -> str:
        """Which part of the dataset this is, such as `train`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class id."""

    @property
    def note(self) -> str:
        """What its user should know, such as a list of another length than the published one; else empty."""

    @property
    def ids(self) -> list[str]:
        """Sorted, unique names of the images: with a root their path below it, with forward slashes."""

    def __len__(self) -> int: ...

    def path(self, i: int) -> Path:
        """Return the image file, or the name that stands for it in messages."""

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return the upright RGB picture; raise UserError if the file cannot be read."""

    def label(self, i: int) -> UInt8[np.ndarray, "height width"] | None:
        """Return class ids, 255 for void; None without a label map; raise UserError for an illegal one."""

    def load(self, i: int) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"] | None]:
        """Return image and label; raise UserError if either is bad or their sizes differ."""

    def digest(self, i: int) -> tuple[str, str]:
        """Return the SHA-256 of image and label as they are stored ("" without a label), in hexadecimal."""

    def limited(self, n: int) -> "Dataset":
        """Return the dataset of the first `n` images."""

    def picked(self, indices: Sequence[int]) -> "Dataset":
        """Return the dataset of some images, in this order."""

    def once(self) -> "Dataset":
        """Return the dataset for who asks for each image but once: it remembers none."""


class Pair(NamedTuple):
    """An image and its label map, both as paths below the root with forward slashes.

    Strings, not `Path` objects: a hundred thousand of them are sent to every worker.
    """

    image: str
    label: str | None


@dataclass(frozen=True, eq=False)
class PairedFiles:
    """A dataset of image files and index maps. The one implementation of `Dataset` that reads files.

    `table` leads from the raw value of a label file to the class id: 255 for void, `ILLEGAL` for values that
    the dataset does not define, as those beyond its end are.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(repr=False)
    table: UInt8[np.ndarray, "raw"] = field(repr=False)
    note: str = ""

    @cached_property
    def ids(self) -> list[str]:
        """Paths of the images below the root."""
        return [pair.image for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def path(self, i: int) -> Path:
        """Return the image file."""
        return self.root / self.pairs[i].image

    def label_path(self, i: int) -> Path | None:
        """Return the label file, or None for an unlabelled image."""
        label = self.pairs[i].label
        return None if label is None else self.root / label

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return the upright RGB picture; raise UserError naming the file if it cannot be read."""
        return decode_image(self.path(i))

    def label(self, i: int) -> UInt8[np.ndarray, "height width"] | None:
        """Return class ids, 255 for void; None for an unlabelled image.

        Raises:
            UserError: The file cannot be read, is no index map, or holds a value that no class has.

        """
        path = self.label_path(i)
        if path is None:
            return None
        raw = decode_label(path)
        if raw.dtype != np.uint8 or len(self.table) < 256:
            self._refuse(path, raw, (raw < 0) | (raw >= len(self.table)))
        ids = self.table[raw]
        self._refuse(path, raw, ids == ILLEGAL)
        return ids

    def _refuse(self, path: Path, raw: np.ndarray, wrong: np.ndarray) -> None:
        if wrong.any():
            raise UserError(
                f"{path}: label value {raw[wrong].min()} stands for no class of {self.name}; "
                f"allowed are {value_ranges(np.flatnonzero(self.table != ILLEGAL))}"
            )

    def load(self, i: int) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"] | None]:
        """Return image and label; raise UserError if either is bad or their sizes differ."""
        image, label = self.image(i), self.label(i)
        if label is not None and label.shape != image.shape[:2]:
            (image_height, image_width), (height, width) = image.shape[:2], label.shape
            raise UserError(
                f"image and label map differ in size: {self.path(i)} is {image_width} x {image_height}, "
                f"{self.label_path(i)} is {width} x {height} (width x height)"
            )
        return image, label

    def digest(self, i: int) -> tuple[str, str]:
        """Return the SHA-256 of the image file and of the label file ("" without one), in hexadecimal."""
        label = self.label_path(i)
        return (
            hashlib.sha256(read_bytes(self.path(i))).hexdigest(),
            "" if label is None else hashlib.sha256(read_bytes(label)).hexdigest(),
        )

    def limited(self, n: int) -> Self:
        """Return the dataset of the first `n` images."""
        return replace(self, pairs=self.pairs[:n])

    def picked(self, indices: Sequence[int]) -> Self:
        """Return the dataset of some images, in this order."""
        return replace(self, pairs=tuple(self.pairs[i] for i in indices))

    def once(self) -> Self:
        """Return this dataset: files are read anew whenever they are asked for."""
        return self


def label_table(raw_values: Iterable[int], void: Iterable[int] = (VOID,)) -> UInt8[np.ndarray, "raw"]:
    """Return the table from raw label value to class id: the n-th of `raw_values` to n, all of `void` to 255.

    All other values are `ILLEGAL`. It has 256 entries, or more if a value is greater.
    """
    raw_values, void = tuple(raw_values), tuple(void)
    table = np.full(max(256, 1 + max(raw_values + void)), ILLEGAL, dtype=np.uint8)
    table[list(void)] = VOID
    table[list(raw_values)] = np.arange(len(raw_values))
    return table


def value_ranges(values: Int64[np.ndarray, "value"]) -> str:
    """Write ascending numbers as a person would: 0-10, 12, 255."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


@dataclass(frozen=True)
class Recipe:
    """How a dataset is opened, and what someone who does not have it needs to know."""

    open: Callable[[Path, str], PairedFiles]
    published: str
    tree: str
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def note(self, split: str, images: int) -> str:
        """A sentence if a split has another number of images than was published for it; else empty."""
        known = self.sizes.get(split, (images,))
        published = " or ".join(map(str, known))
        return "" if images in known else f"{split} has {images} images; the published list has {published}"
