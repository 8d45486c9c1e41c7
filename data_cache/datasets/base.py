"""What a dataset is: images, label maps and the names of the classes; and what its line in the registry says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import UInt8

VOID = 255
"""Label of a pixel that belongs to no class."""


class Digest(NamedTuple):
    """SHA-256 of an image and of its label map as they are stored, in hexadecimal; "" without a label map."""

    image: str
    label: str


class Sample(NamedTuple):
    """An image, its label map (None without one), and their hashes."""

    image: UInt8[np.ndarray, "height width 3"]
    label: UInt8[np.ndarray, "height width"] | None
    digest: Digest


class Dataset(Protocol):
    """A list of images, with label maps where they exist. Datasets pickle: they are sent to worker processes."""

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
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, such as a list of another length than the published one."""

    @property
    def ids(self) -> list[str]:
        """Sorted, unique names of the images: with a root their path below it, with forward slashes."""

    def __len__(self) -> int: ...

    def path(self, i: int) -> Path:
        """Return the image file, or the name that stands for it in messages."""

    def has_label(self, i: int) -> bool:
        """Whether the image has a label map; it is not read."""

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return the upright RGB image; raise UserError if the file cannot be read."""

    def label(self, i: int) -> UInt8[np.ndarray, "height width"] | None:
        """Return class ids, 255 for void; None without a label map; raise UserError for an illegal one."""

    def load(self, i: int) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"] | None]:
        """Return image and label; raise UserError if either is bad or their sizes differ."""

    def digest(self, i: int) -> Digest:
        """Return the hashes of image and label map."""

    def sample(self, i: int) -> Sample:
        """Return what `load` and `digest` return, each file read once; raise UserError as `load` does."""

    def subset(self, indices: Sequence[int]) -> "Dataset":
        """Return the dataset of some images, in this order."""

    def uncached(self) -> "Dataset":
        """Return the dataset without a memory of images, for a caller that reads each of them only once."""


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset in the registry.

    Args:
        open: Opens a split below a root; a drawn dataset ignores the root.
        splits: Names of its splits; empty if any name may be one.
        source: Where its files are published.
        layout: The files it needs below its root; "" if it is drawn, not read.
        sizes: Published number of images of each split; several where publications differ.

    """

    open: Callable[[Path, str], Dataset]
    splits: tuple[str, ...] = ()
    source: str = ""
    layout: str = ""
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def notes(self, split: str, images: int) -> tuple[str, ...]:
        """A sentence if a split has another number of images than was published for it."""
        known = self.sizes.get(split, (images,))
        published = " or ".join(map(str, known))
        return () if images in known else (f"{split} has {images} images; the published list has {published}",)
