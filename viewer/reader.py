"""Opens a cache in a notebook or a script; its images are indexed by number or name and displayed as figures."""

import operator
import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from data_cache.cached_view import CachedView
from data_cache.errors import UsageError
from data_cache.mask_set import MaskSet
from data_cache.messages import count, printable
from data_cache.paths import only_cache
from data_cache.reader import Cache
from data_cache.source_dataset import SourceDataset
from viewer.figure import COLUMNS, Figure
from viewer.stats import Stats, stats
from viewer.summary import summary
from viewer.view_figure import heading, thumbnail, view_figure

if TYPE_CHECKING:
    import pandas
    import xarray


def open_cache(
    path: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    masks: str | None = None,
) -> "CacheReader":
    """Open a cache to inspect it. The cache may be unfinished, and its images may be missing.

    Args:
        path: the cache; None is the only one in the folder of caches.
        root: root of the images; None is their location when the cache was made.
        masks: name of the mask set; None is that of stage 1.

    Raises:
        UsageError: no mask set has this name, or there is not exactly one cache to choose.
        UserError: the path is not a cache, the cache is damaged, or `root` does not contain its images.

    """
    cache = Cache(only_cache() if path is None else Path(path).expanduser())
    source = SourceDataset(cache, None if root is None else Path(root).expanduser())
    if root is not None:
        source.open()  # reports a wrong folder at once
    return CacheReader(cache, cache.mask_name(masks), source)


def open_finished_cache(path: Path, root: Path | None, masks: str | None = None) -> "CacheReader":
    """Open a cache that must be finished and whose images must be available. Raises as `open_cache` does."""
    cache = Cache(path)
    reader = CacheReader(cache, cache.mask_name(masks), SourceDataset(cache, root))
    cache.check_done(reader.masks)
    reader.source.open()
    return reader


class ImageRecord(CachedView):
    """A view that is displayed as a figure. `cache[12]` is view 0 of an image, `cache[12].view(2)` its view 2."""

    def to_image(self) -> Image:
        """All panels and the legend as one image."""
        return view_figure(self).to_image()

    def __repr__(self) -> str:
        return printable(heading(self))

    def _repr_html_(self) -> str:
        return view_figure(self)._repr_html_()


class CacheReader(MaskSet):
    """`cache[12]` and `cache["images/12.jpg"]` are image records, `cache[3:6]` a list of them."""

    def __iter__(self) -> Iterator[ImageRecord]:
        return (ImageRecord(self, index) for index in range(len(self)))

    def __getitem__(self, which: int | str | slice) -> Any:
        """View 0 of an image by its index (from the end if negative) or its id; a list of them by a slice."""
        if isinstance(which, slice):
            return [ImageRecord(self, index) for index in range(len(self))[which]]
        if isinstance(which, str):
            if which not in self._index:
                raise UsageError(f"{self.cache.path}: no image named {which!r}; its first is {self.ids[0]!r}")
            return ImageRecord(self, self._index[which])
        index = operator.index(which)
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.cache.path}: no image {index}; it has {len(self)}")
        return ImageRecord(self, index % len(self))

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.ids)}

    def grid(self, images: Iterable[int | str] | None = None, view: int = 0, columns: int = COLUMNS) -> Figure:
        """Fused masks over some images, or over the first sixteen."""
        requested = range(16) if images is None else images
        # a range may exceed the cache
        indices = [which for which in requested if not isinstance(requested, range) or which < len(self)]
        if not indices:
            raise UsageError("grid: no images; pass at least one index or id")
        records = [self[which].view(view) for which in indices]
        reasons = {record.missing for record in records if record.ok} - {""}
        notes = ["fused masks in arbitrary colors; where there are none, the image is pale"]
        notes += [f"no image: {reason}" for reason in sorted(reasons)]
        return Figure.of([thumbnail(record) for record in records], notes=notes, columns=columns)

    def stats(self) -> Stats:
        """Pseudo labels, ignored tokens and CLS norms of all views, read shard by shard."""
        return stats(self)

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row per view with its numbers: `data_cache.as_dataframe.dataframe`."""
        from data_cache.as_dataframe import dataframe

        return dataframe(self)

    def xarray(self, chunks: Any = None) -> "xarray.Dataset":
        """The arrays with named dimensions: `data_cache.as_xarray.arrays`."""
        from data_cache.as_xarray import arrays

        return arrays(self.cache, self.masks, chunks)

    def __repr__(self) -> str:
        sizes = f"{count(len(self), 'image')}, {count(self.views, 'view')}"
        return printable(f"{self.cache.path}: {sizes}, masks {self.masks}")

    def _repr_html_(self) -> str:
        return summary(self)
