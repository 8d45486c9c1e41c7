"""A mask set of a cache: its settings, classes and statuses, and its shards, read on demand."""

from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
from jaxtyping import Int

from data_cache.content import OK, CachedArrays, Texts
from data_cache.errors import UserError
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache
from data_cache.source_dataset import SourceDataset
from data_cache.splits import Split

SHARDS_IN_MEMORY = 4
"""Neighboring images share a shard; a shard of COCO with four views takes about 0.5 MiB."""


class MaskSet:
    """One mask set of a cache and the dataset that the cache was made from.

    Files are read on first use and kept in memory: reopen the cache to see later changes.
    """

    def __init__(self, cache: Cache, masks: str, source: SourceDataset) -> None:
        self.cache, self.masks, self.source = cache, masks, source
        self._load = lru_cache(SHARDS_IN_MEMORY)(cache.load)

    def using(self, masks: str) -> Self:
        """Another mask set of the same cache. Raises UsageError if no mask set has this name."""
        return type(self)(self.cache, self.cache.mask_name(masks), self.source)

    def __len__(self) -> int:
        return self.cache.layout.images

    @cached_property
    def statuses(self) -> list[tuple[str, str]]:
        """Id and status of every image: `ok`, the reason of its failure, or "" while it is not done."""
        pending, shard = set(self.cache.pending_shards(DEFAULT_MASKS)), self.cache.layout.shard
        # an unfinished shard may already hold statuses
        return [
            (name, "" if i // shard in pending else status) for i, (name, status) in enumerate(self.cache.statuses())
        ]

    @property
    def ids(self) -> list[str]:
        """Id of every image: its path below the dataset's root."""
        return [name for name, _ in self.statuses]

    def first_ok(self, count: int) -> list[int]:
        """Indices of the first `count` images that did not fail."""
        return [index for index, (_, status) in enumerate(self.statuses) if status == OK][:count]

    def first_labelled(self, count: int | None) -> list[int]:
        """Indices of the first `count` (None: all) images that did not fail and have a label map.

        Raises UserError if there is none, or the images are missing.
        """
        dataset = self.source.dataset
        if found := [index for index in self.first_ok(len(self)) if dataset.has_label(index)][:count]:
            return found
        raise UserError(f"{self.cache.path}: no image has a label map; measurements need images with labels")

    def loaded(self, index: int, masks: str | None = None) -> CachedArrays:
        """The shard of an image, in this mask set or another. Raises UserError if it is unfinished or damaged."""
        return self._load(masks or self.masks, index // self.cache.layout.shard)

    @cached_property
    def texts(self) -> Texts:
        """Text features of the classes, and their prompt templates."""
        return self.cache.texts()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class id."""
        return self.texts.classes

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings of the clustering (`Cache.mask_attributes`)."""
        return self.cache.mask_attributes(self.masks)

    @cached_property
    def split(self) -> Split:
        """The seen classes, which have labels in training, and the unseen ones."""
        return Split(self.classes, tuple(self.settings["unseen"]))

    @property
    def views(self) -> int:
        """Views per image."""
        return self.cache.layout.views

    @property
    def clip_size(self) -> int:
        """Side length of CLIP's input in pixels."""
        return self.cache.fingerprint["clip"]["image_size"]

    @property
    def tokens_size(self) -> int:
        """Side length in pixels of the input of the model whose tokens are clustered: CLIP, unless it is another."""
        return self.cache.tokens_model(self.masks)["image_size"]

    @property
    def mask_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens in a mask."""
        return self.cache.mask_layout(self.masks).grid

    @property
    def counts(self) -> Int[np.ndarray, "image view"]:
        """Number of pseudo labels per view; 0 if the image failed or is not done."""
        return self.cache.label_counts(self.masks)
