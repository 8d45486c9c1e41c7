"""The sizes of a cache's arrays, and how images are grouped into shards."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Dense = Literal["float16", "int8", "none"]
DENSE: tuple[Dense, ...] = get_args(Dense)
"""How dense tokens may be stored."""
DEFAULT_MASKS = "default"
"""The mask set that stage 1 makes."""


@dataclass(frozen=True)
class Layout:
    """The sizes of every array. A shard is `shard` consecutive images: one chunk of every array.

    Args:
        images: N, images in the cache.
        views: V, views per image.
        channels: C, width of CLIP's joint space.
        grid: (h, w), tokens per view.
        shard: S, images per shard.
        dense: how dense tokens are stored.

    """

    images: int
    views: int
    channels: int
    grid: tuple[int, int]
    shard: int
    dense: Dense

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "Layout":
        """The layout of Zarr arrays by name, which include `cls` and the labels of the default masks."""
        features, label = arrays["cls"], arrays[f"masks/{DEFAULT_MASKS}/label"]
        dense: Dense = "none" if "dense" not in arrays else "int8" if "dense_scale" in arrays else "float16"
        return cls(*features.shape, label.shape[2:], features.chunks[0], dense)

    def of_masks(self, attributes: Mapping[str, Any]) -> "Layout":
        """The sizes in a mask set with these attributes; `dense` is how the set itself stores tokens of its model."""
        if (tokens := attributes.get("tokens")) is None:
            return replace(self, dense="none")
        return replace(self, grid=tuple(tokens["grid"]), channels=tokens["channels"], dense=tokens["dense"])

    @property
    def shards(self) -> int:
        """The number of shards."""
        return math.ceil(self.images / self.shard)

    def span(self, shard: int) -> slice:
        """The images of one shard."""
        return slice(shard * self.shard, min((shard + 1) * self.shard, self.images))

    def images_in(self, shards: Iterable[int]) -> int:
        """The number of images in some shards."""
        return sum(span.stop - span.start for span in map(self.span, shards))


def label_dtype(max_labels: int) -> str:
    """uint8 while all labels fit below the reserved 255, else uint16 (reserved 65535)."""
    return "uint8" if max_labels <= 254 else "uint16"


def reserved_label(dtype: str) -> int:
    """The label of a token that is not ignored: the largest value of the type."""
    return 255 if dtype == "uint8" else 65535
