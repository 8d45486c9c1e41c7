"""What a cache and its photographs hold of single images, for whoever looks at them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Float16, Shaped, UInt8

from data_cache.content import Loaded
from data_cache.datasets.base import VOID, Dataset
from data_cache.errors import UsageError, UserError
from data_cache.source import photographs
from data_cache.store import Cache
from data_cache.views import View


class Looked(NamedTuple):
    """One view of an image: its geometry, the whole image, the view's own pixels and labels.

    Labels are all VOID without a label map.
    """

    geometry: View
    whole: UInt8[np.ndarray, "whole_height whole_width 3"]
    image: UInt8[np.ndarray, "height width 3"]
    label: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class CachedViews:
    """A finished cache, one of its mask sets, and the photographs it was made from.

    Args:
        cache: the cache.
        masks: name of the mask set.
        loaded: what of it training reads.
        images: the photographs.
        view: which view of every image.

    """

    cache: Cache
    masks: str
    loaded: Loaded
    images: Dataset
    view: int = 0

    @classmethod
    def open(cls, path: Path, root: Path | None, masks: str | None = None, view: int = 0) -> "CachedViews":
        """Open them.

        Raises:
            UsageError: no such mask set or view.
            UserError: an unfinished or damaged cache, or photographs that are not its own.

        """
        cache = Cache(path)
        name, views = cache.mask_name(masks), cache.layout.views
        if not 0 <= view < views:
            raise UsageError(f"--view {view}: {path} has {views} of an image, 0 to {views - 1}")
        return cls(cache, name, cache.load(name), photographs(cache, root), view)

    def look(self, index: int) -> Looked:
        """An image's view. Raises UserError for one that failed, or that changed since it was cached."""
        if not self.loaded.ok[index]:
            reason = self.cache.statuses()[index][1]
            raise UserError(f"{self.images.ids[index]}: failed when it was cached ({reason}); choose another")
        if self.images.digest(index) != self.loaded.digest[index]:
            raise UserError(
                f"{self.images.path(index)}: the image or its label map changed since it was cached; restore them, or "
                "precompute again into another --cache"
            )
        geometry = View.stored(self.loaded.box[index, self.view], self.loaded.flip[index, self.view])
        image, label = self.images.load(index)
        if label is None:
            label = np.full(image.shape[:2], VOID, np.uint8)
        return Looked(geometry, image, geometry.cut(image), geometry.cut(label))

    def cls(self, index: int) -> Float16[np.ndarray, "channel"]:
        """CLIP's CLS token of an image's view."""
        return self.loaded.cls[index, self.view]

    def fused(self, index: int) -> tuple[Shaped[np.ndarray, "y x"], int]:
        """The stored mask labels of an image's view, and how many there are."""
        return self.loaded.label[index, self.view], int(self.loaded.count[index, self.view])

    def first(self, count: int) -> list[int]:
        """The first images that did not fail."""
        return np.flatnonzero(self.loaded.ok)[:count].tolist()


def chosen(ids: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Places of images in a list of ids, each named by its place, its id, or the end of its id, with a suffix or not.

    An entry may name several, with commas between. Raises UsageError for what is no image, or several.
    """
    places = {name: place for place, name in enumerate(ids)}
    names = [name for entry in wanted for name in ([entry] if entry in places else entry.split(","))]
    return list(dict.fromkeys(_place(name.strip(), places) for name in names))


def _place(name: str, places: dict[str, int]) -> int:
    if name in places:
        return places[name]
    # published names may be numbers with leading zeros
    if name.isdecimal() and str(int(name)) == name:
        if int(name) < len(places):
            return int(name)
        raise UsageError(f"--image {name}: there are {len(places)} images, 0 to {len(places) - 1}")
    ends = [place for known, place in places.items() if name and _ends(known, name)]
    if len(ends) == 1:
        return ends[0]
    known = f"names {len(ends)} images; write more of the name" if ends else "no such image"
    raise UsageError(f"--image {name}: {known}; names are such as {next(iter(places))}")


def _ends(known: str, name: str) -> bool:
    return f"/{known}".endswith(f"/{name}") or f"/{PurePosixPath(known).with_suffix('')}".endswith(f"/{name}")


def is_cache(path: Path) -> bool:
    """Whether a folder is a Zarr group, of ours or another's."""
    return (path / "zarr.json").is_file()
