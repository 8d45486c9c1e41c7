"""A cache to look into, from a notebook or a script."""

import operator
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from data_cache.content import Loaded, Texts
from data_cache.errors import UsageError
from data_cache.figure import Figure
from data_cache.photographs import Photographs
from data_cache.places import only_cache
from data_cache.portrait import thumbnail
from data_cache.record import ImageRecord, Panels
from data_cache.splits import Split
from data_cache.stats import Stats, stats
from data_cache.store import MASKS, Cache
from data_cache.summary import summary

if TYPE_CHECKING:
    import xarray

SHARDS_KEPT = 4
"""Shards in memory: neighbours lie in one, and a shard of COCO's four views is some 0.5 MiB."""


def open_cache(
    path: str | Path | None = None,
    root: str | Path | None = None,
    masks: str | None = None,
    panels: Panels | None = None,
) -> "Reader":
    """Open a cache to look into it.

    Args:
        path: the cache; None is the only one in the folder of caches.
        root: where the photographs are now; None is where they were when the cache was made.
        masks: the mask set to look at; None is stage 1's own.
        panels: what else to draw of a view: `pipeline.scales.scale_maps` clusters its tokens anew and gives the
            masks of each scale, which a cache does not hold.

    Raises:
        UsageError: there is no such mask set, or not exactly one cache to choose.
        UserError: no cache, or a damaged one; or `root` does not hold its photographs.

    """
    cache = Cache(only_cache() if path is None else Path(path).expanduser())
    photographs = Photographs(cache, None if root is None else Path(root).expanduser())
    if root is not None:
        photographs.dataset  # noqa: B018 a wrong folder should be told now, not at the first picture
    return Reader(cache, cache.mask_name(masks), photographs, panels)


class Reader:
    """One mask set of a cache, as it was when first looked at: open it again to see what was written since.

    `reader[12]` and `reader["images/12.jpg"]` are image records, `reader[3:6]` a list of them.
    """

    def __init__(self, cache: Cache, masks: str, photographs: Photographs, panels: Panels | None = None) -> None:
        self.cache, self.masks, self.photographs, self.panels = cache, masks, photographs, panels
        self._load = lru_cache(SHARDS_KEPT)(cache.load)

    def using(self, masks: str) -> "Reader":
        """Another mask set of the same cache. Raises UsageError if there is none of this name."""
        return Reader(self.cache, self.cache.mask_name(masks), self.photographs, self.panels)

    # -- images ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.cache.layout.images

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord(self, index) for index in range(len(self)))

    def __getitem__(self, which: int | str | slice) -> Any:
        """View 0 of an image by its number (from the end if negative) or name; a list of them by a slice."""
        if isinstance(which, slice):
            return [ImageRecord(self, index) for index in range(len(self))[which]]
        if isinstance(which, str):
            if which not in self._numbers:
                raise UsageError(f"{self.cache.path}: no image named {which!r}; its first is {self.statuses[0][0]!r}")
            return ImageRecord(self, self._numbers[which])
        number = operator.index(which)
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.cache.path}: no image {number}; it has {len(self)}")
        return ImageRecord(self, number % len(self))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: index for index, (name, _) in enumerate(self.statuses)}

    @cached_property
    def statuses(self) -> list[tuple[str, str]]:
        """Name and status of every image: `ok`, the reason of its failure, or "" while it is not done."""
        pending, shard = set(self.cache.pending(MASKS)), self.cache.layout.shard
        # a shard without its record is not done, whatever its chunks already say
        return [
            (name, "" if i // shard in pending else status) for i, (name, status) in enumerate(self.cache.statuses())
        ]

    def loaded(self, image: int, masks: str | None = None) -> Loaded:
        """The shard an image lies in, with this mask set or another. Raises UserError if it is not done, or damaged."""
        return self._load(masks or self.masks, image // self.cache.layout.shard)

    def grid(self, images: Iterable[int | str] | None = None, view: int = 0) -> Figure:
        """Fused masks over the photographs of some images, or of the first sixteen."""
        wanted = range(16) if images is None else images
        # range(16) is what one types, however few there are
        wanted = [which for which in wanted if not isinstance(wanted, range) or which < len(self)]
        if not wanted:
            raise UsageError("grid: names no image; pass numbers or names of some")
        records = [self[which].view(view) for which in wanted]
        missing = {record.missing for record in records if record.ok} - {""}
        return Figure(
            [thumbnail(record) for record in records], notes=[f"no photograph: {why}" for why in sorted(missing)]
        )

    # -- what they have in common ------------------------------------------------------------------------------

    @cached_property
    def texts(self) -> Texts:
        """Text features of the classes, and the prompts they were made from."""
        return self.cache.texts()

    @cached_property
    def about(self) -> dict[str, Any]:
        """How the mask set was clustered: unseen classes, threshold (lambda), windows, updates, backend, dtype."""
        return self.cache.mask_attributes(self.masks)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the position is the class id."""
        return self.texts.classes

    @cached_property
    def split(self) -> Split:
        """Which classes the mask set takes as seen."""
        return Split(self.classes, tuple(self.about["unseen"]))

    @property
    def views(self) -> int:
        """Views an image."""
        return self.cache.layout.views

    @property
    def clip_size(self) -> int:
        """Side of CLIP's input in pixels."""
        return self.cache.fingerprint["clip"]["image_size"]

    @property
    def counts(self) -> Int[np.ndarray, "image view"]:
        """How many pseudo labels each view has; 0 where it failed or is not done."""
        return self.cache.counts(self.masks)

    def stats(self) -> Stats:
        """Labels, ignored tokens and norms of all views, shard by shard."""
        return stats(self.cache, self.masks)

    def xarray(self, chunks: Any = None) -> "xarray.Dataset":
        """The arrays with their names: `data_cache.arrays.arrays`."""
        from data_cache.arrays import arrays

        return arrays(self.cache, self.masks, chunks)

    # -- shown -------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"{self.cache.path}: {len(self)} images, {self.cache.layout.views} views, masks {self.masks}"

    def _repr_html_(self) -> str:
        return summary(self)
