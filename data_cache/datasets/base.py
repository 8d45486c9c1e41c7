"""The interface of a dataset (images, label maps, class names) and of its entry in the registry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int, Integer, UInt, UInt8

from data_cache.messages import count

VOID = 255
"""Label of a pixel that belongs to no class, in 8-bit label maps."""


def void_of(label: Integer[np.ndarray, "..."]) -> int:
    """Label of a pixel that belongs to no class: the largest value of the label map's type, 255 or 65535."""
    return int(np.iinfo(label.dtype).max)


class Digest(NamedTuple):
    """Hexadecimal SHA-256 of an image and of its label map as stored; "" without a label map."""

    image: str
    label: str


class Sample(NamedTuple):
    """An image, its label map (None without one), their hashes, and the number of pixels of each class id."""

    image: UInt8[np.ndarray, "height width 3"]
    label: UInt[np.ndarray, "height width"] | None
    digest: Digest
    pixels: Int[np.ndarray, "value"] | None


class Dataset(Protocol):
    """A list of images with optional label maps. Datasets are picklable: they are sent to worker processes."""

    @property
    def name(self) -> str:
        """Name in the registry, such as `coco`."""

    @property
    def root(self) -> Path | None:
        """Folder with all its files; None if it is synthetic."""

    @property
    def split(self) -> str:
        """Name of the split, such as `train`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class id."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user, such as that the number of images differs from the published one."""

    @property
    def ids(self) -> list[str]:
        """Sorted, unique names of the images: their paths below the root, with forward slashes, if there is a root."""

    def __len__(self) -> int: ...

    def path(self, i: int) -> Path:
        """The image file, or the name that stands for it in messages."""

    def has_label(self, i: int) -> bool:
        """Whether the image has a label map, which is not read."""

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """The upright RGB image. Raises UserError if the file cannot be read."""

    def label(self, i: int) -> UInt[np.ndarray, "height width"] | None:
        """Class ids and void (`void_of`); None without a label map. Raises UserError for an invalid label map.

        The map has 16 bits if the dataset has more than 254 classes, otherwise 8.
        """

    def load(self, i: int) -> tuple[UInt8[np.ndarray, "height width 3"], UInt[np.ndarray, "height width"] | None]:
        """Image and label. Raises UserError if either is invalid or their sizes differ."""

    def digest(self, i: int) -> Digest:
        """The hashes of image and label map."""

    def sample(self, i: int) -> Sample:
        """The results of `load` and `digest`, reading each file once. Raises UserError, as `load` does."""

    def subset(self, indices: Sequence[int]) -> "Dataset":
        """The dataset of the images with these indices, in this order."""

    def uncached(self) -> "Dataset":
        """The dataset without its in-memory cache of images, for callers that read each image only once."""


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset in the registry.

    Args:
        open: Opens a split below a root; a synthetic dataset ignores the root.
        splits: Names of its splits; empty if any name is allowed.
        source: Where its files are published.
        layout: The files it needs below its root; "" if it is synthetic.
        sizes: Published numbers of images of each split; several if publications differ.
        folder: The dataset whose folder it shares, if it has none of its own.

    """

    open: Callable[[Path, str], Dataset]
    splits: tuple[str, ...] = ()
    source: str = ""
    layout: str = ""
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folder: str = ""

    def notes(self, split: str, images: int) -> tuple[str, ...]:
        """A note if the number of images of a split differs from the published one."""
        published = self.sizes.get(split, (images,))
        if images in published:
            return ()
        sizes = " or ".join(f"{size:,}" for size in published)
        return (f"{split} has {count(images, 'image')}; the published list has {sizes}",)
