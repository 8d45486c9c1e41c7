"""New masks from cached dense tokens, without CLIP: another entry under masks/ beside those that are there."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from data_cache.content import OK
from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import UsageError, UserError, disk_errors
from data_cache.lock import writer_lock
from data_cache.schema import reserved_label
from data_cache.source import photographs
from data_cache.splits import make_split
from data_cache.store import MASKS, Cache
from data_cache.views import View, replay_label
from pipeline.live import masker_of
from pipeline.masks import Masker
from pipeline.workers import Note, Workers, absolute, run_shards

READ = ("image/status", "image/label_hash", "view/box", "view/flip")


@dataclass(frozen=True)
class Clustering:
    """What `cluster` is asked for; None is what stage 1's own mask set has."""

    cache: Path
    name: str
    root: Path | None = None
    unseen: str | None = None
    windows: tuple[int, ...] | None = None
    threshold: float | None = None
    updates: int | None = None
    kmeans: str = "auto"
    workers: int = 0
    scheduler: str | None = None

    @property
    def images(self) -> int:
        """Images of the cache. Raises UserError if it is none."""
        return Cache(self.cache).layout.images


def window_sizes(text: str) -> tuple[int, ...]:
    """Window sizes from "3,7". Raises UsageError for anything but positive whole numbers."""
    sides = text.split(",")
    if not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"--windows {text}: must be positive whole numbers with commas between")
    return tuple(map(int, sides))


@dataclass(frozen=True)
class Job:
    """A resolved clustering, small enough to travel."""

    cache: Path
    name: str
    dataset: Dataset
    masker: Masker

    def run(self, shard: int, tell: Callable[[int], None]) -> dict[str, float]:
        """Cluster one shard and write its masks."""
        cache = Cache(self.cache, mode="r+")
        span, (h, w), size = cache.layout.span(shard), cache.layout.grid, cache.fingerprint["clip"]["image_size"]
        images, views = span.stop - span.start, cache.layout.views
        label = np.full((images, views, h, w), reserved_label(self.masker.dtype), self.masker.dtype)
        count = np.zeros((images, views), np.int32)
        status, digest, box, flip = (cache.read(key, span) for key in READ)
        rows = [row for row in range(images) if status[row] == OK]
        together = max(1, self.masker.batch // views)
        for some in (rows[start : start + together] for start in range(0, len(rows), together)):
            dense = np.concatenate([cache.dense(span.start + row) for row in some])
            shown = []
            for row in some:
                whole = self._label(span.start + row, digest[row])
                crops = [View.stored(box[row, view], flip[row, view]) for view in range(views)]
                shown += [None if whole is None else replay_label(whole, crop, size) for crop in crops]
            made = self.masker(dense, shown)
            label[some], count[some] = (part.reshape(len(some), views, *part.shape[1:]) for part in made)
            tell(len(some))
        tell(images - len(rows))
        cache.write_masks(shard, label, count, self.name)
        return {}

    def _label(self, index: int, digest: str) -> UInt8[np.ndarray, "height width"] | None:
        if self.dataset.digest(index)[1] != digest:
            raise UserError(
                f"{self.dataset.path(index)}: its label map changed since it was cached; restore it, or precompute "
                "again into another --cache"
            )
        return self.dataset.label(index)


def recluster(wanted: Clustering, tell: Callable[[int], None] = lambda _: None, note: Note = lambda _: None) -> int:
    """Cluster what is not clustered yet; returns how many images. `tell` hears of images done, `note` of the workers.

    Killed at any instant and called again, it goes on with the unfinished shards.

    Raises:
        UsageError: the name is taken by masks of other settings, or a setting is impossible.
        UserError: the cache has no dense tokens or unfinished features, the photographs are not its own, or the Dask
            cluster cannot be used.

    """
    workers = Workers.of(wanted.workers, wanted.scheduler, "auto")
    cache = Cache(wanted.cache, mode="r+")
    if not re.fullmatch(r"\w{1,60}", wanted.name):
        raise UsageError(f"--name {wanted.name!r}: letters, digits and _ only, at most 60")
    if cache.layout.dense == "none":
        raise UserError(f"{cache.path}: holds no dense tokens; run `precompute` with --dense float16 or int8")
    if cache.pending(MASKS):
        raise UserError(f"{cache.path}: not finished; run the same `precompute` command again first")
    job = Job(wanted.cache, wanted.name, photographs(cache, wanted.root).once(), _masker(wanted, cache))
    room = "finished shards are kept: make room, and the same command goes on"
    with disk_errors(wanted.cache, room), writer_lock(wanted.cache):
        cache = Cache(wanted.cache, mode="r+")  # another call may have added a set while this one waited or looked
        cache.sweep()
        if wanted.name not in cache.masks:
            cache.add_masks(wanted.name, job.masker.attributes())
            cache = Cache(wanted.cache, mode="r+")
        cache.require_masks(wanted.name, job.masker.attributes())
        pending = cache.pending(wanted.name)
        sent = replace(job, cache=job.cache.absolute(), dataset=absolute(job.dataset)) if workers.scheduler else job
        for _ in run_shards(sent, pending, tell, workers, note):
            pass
    return cache.layout.images_in(pending)


def _masker(wanted: Clustering, cache: Cache) -> Masker:
    classes, given = (
        cache.texts().classes,
        {name: getattr(wanted, name) for name in ("windows", "threshold", "updates")},
    )
    if wanted.unseen is not None:
        given["unseen"] = make_split(cache.fingerprint["dataset"]["name"], classes, wanted.unseen).unseen
    about = cache.mask_attributes(MASKS) | {name: value for name, value in given.items() if value is not None}
    # machines of a cluster may have a GPU or not: all have a CPU, which gives the same labels
    device = "cpu" if wanted.scheduler else str(resolve_device("auto"))
    return masker_of(cache, about, classes, device, wanted.kmeans)
