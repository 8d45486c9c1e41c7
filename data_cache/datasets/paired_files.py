"""A dataset of image files and label maps: the implementation of `Dataset` that reads files."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from jaxtyping import Int, Int64, Integer, UInt, UInt8

from data_cache.datasets.base import VOID, Digest, Sample, void_of
from data_cache.datasets.decode import count_values, decode_image, decode_label, read_bytes
from data_cache.errors import UserError

MAX_CLASSES = 254
"""The classes of 8-bit label maps: 254 (undefined raw values) and 255 (void) are reserved."""


class Pair(NamedTuple):
    """An image and its label map, both as paths below the root with forward slashes.

    Strings, not `Path` objects: a hundred thousand pairs are sent to every worker.
    """

    image: str
    label: str | None


@dataclass(frozen=True, eq=False)
class PairedFiles:
    """Image files and index maps below a folder.

    `table` maps raw label values to class ids. The two largest values of its type stand for undefined raw values and
    for void. Raw values beyond its end are undefined, too.
    """

    name: str
    root: Path
    split: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...] = field(repr=False)
    table: UInt[np.ndarray, "raw"] = field(repr=False)
    notes: tuple[str, ...] = ()

    @cached_property
    def ids(self) -> list[str]:
        """Paths of the images below the root."""
        return [pair.image for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def path(self, i: int) -> Path:
        """The image file."""
        return self.root / self.pairs[i].image

    def has_label(self, i: int) -> bool:
        """Whether the image has a label map, which is not read."""
        return self.pairs[i].label is not None

    def label_path(self, i: int) -> Path | None:
        """The label file; None for an unlabelled image."""
        label = self.pairs[i].label
        return None if label is None else self.root / label

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """The upright RGB image. Raises UserError if the file cannot be read."""
        return decode_image(self.path(i))

    def label(self, i: int) -> UInt[np.ndarray, "height width"] | None:
        """Class ids, `void_of` the map for void; None for an unlabelled image.

        Raises UserError if the file cannot be read, is not an index map, or has a value of no class.
        """
        path = self.label_path(i)
        return None if path is None else self._class_ids(path)[0]

    def load(self, i: int) -> tuple[UInt8[np.ndarray, "height width 3"], UInt[np.ndarray, "height width"] | None]:
        """Image and label. Raises UserError if either is invalid or their sizes differ."""
        image, label = self.image(i), self.label(i)
        self._check_sizes(i, image, label)
        return image, label

    def sample(self, i: int) -> Sample:
        """The results of `load` and `digest`, reading each file once. Raises UserError, as `load` does."""
        path, label_path = self.path(i), self.label_path(i)
        data = read_bytes(path)
        image, label, label_hash, pixels = decode_image(path, data), None, "", None
        if label_path:
            label_data = read_bytes(label_path)
            label_hash = _sha256(label_data)
            label, pixels = self._class_ids(label_path, label_data)
        self._check_sizes(i, image, label)
        return Sample(image, label, Digest(_sha256(data), label_hash), pixels)

    def digest(self, i: int) -> Digest:
        """Hexadecimal SHA-256 of the image file and of the label file ("" without one)."""
        label = self.label_path(i)
        return Digest(_sha256(read_bytes(self.path(i))), _sha256(read_bytes(label)) if label else "")

    def subset(self, indices: Sequence[int]) -> Self:
        """The dataset of the images with these indices, in this order."""
        return replace(self, pairs=tuple(self.pairs[i] for i in indices))

    def uncached(self) -> Self:
        """The dataset itself, which has no in-memory cache."""
        return self

    def _class_ids(
        self, path: Path, data: bytes | None = None
    ) -> tuple[UInt[np.ndarray, "height width"], Int[np.ndarray, "value"]]:
        """The class ids of a label file, and how many pixels each has."""
        raw = decode_label(path, data)
        if raw.dtype != np.uint8 or self.table.dtype != np.uint8:
            self._reject(path, raw[(raw < 0) | (raw >= len(self.table))])
            ids = self.table.take(raw)
            self._reject(path, raw[ids == self._undefined])
            return ids, count_values(ids)
        # few of the 256 values occur: these are checked and counted, and mapped only if they are not the ids already
        counts = count_values(raw)
        used = np.flatnonzero(counts)
        ids = self.table[used]
        self._reject(path, used[ids == self._undefined])
        pixels = np.zeros(256, np.int64)
        np.add.at(pixels, ids, counts[used])
        return raw if (ids == used).all() else self.table.take(raw), pixels

    @property
    def _undefined(self) -> int:
        return void_of(self.table) - 1

    def _reject(self, path: Path, illegal: Integer[np.ndarray, "value"]) -> None:
        if illegal.size:
            raise UserError(
                f"{path}: label value {illegal.min()} is not a class of {self.name}; "
                f"allowed are {value_ranges(np.flatnonzero(self.table != self._undefined))}"
            )

    def _check_sizes(self, i: int, image: UInt8[np.ndarray, "..."], label: UInt[np.ndarray, "..."] | None) -> None:
        if label is not None and label.shape != image.shape[:2]:
            (image_height, image_width), (height, width) = image.shape[:2], label.shape
            raise UserError(
                f"image and label map differ in size: {self.path(i)} is {image_width} x {image_height}, "
                f"{self.label_path(i)} is {width} x {height} (width x height)"
            )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def label_table(raw_values: Iterable[int], void: Iterable[int] = (VOID,)) -> UInt[np.ndarray, "raw"]:
    """The table from raw label value to class id: the n-th of `raw_values` maps to n, all of `void` to void.

    All other values are undefined. The table has 256 entries, or more for larger values, of 8 bits, or 16 for more
    than `MAX_CLASSES` classes.
    """
    raw_values, void = tuple(raw_values), tuple(void)
    dtype = np.uint8 if len(raw_values) <= MAX_CLASSES else np.uint16
    largest = np.iinfo(dtype).max
    table = np.full(max(256, 1 + max(raw_values + void)), largest - 1, dtype)
    table[list(void)] = largest
    table[list(raw_values)] = np.arange(len(raw_values))
    return table


def value_ranges(values: Int64[np.ndarray, "value"]) -> str:
    """Format ascending numbers as ranges: "0-10, 12, 255"."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
