"""Adds a mask set to a cache: clusters its dense tokens again, or the tokens of another vision model."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float16, UInt8

from data_cache.arrays import blank_fields
from data_cache.callbacks import Log, Progress, ignore
from data_cache.content import OK
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError, disk_errors
from data_cache.layout import DEFAULT_MASKS
from data_cache.messages import count, first_names
from data_cache.moved import moved_cache_errors
from data_cache.reader import Cache
from data_cache.sample import crop_image, crop_label, read_label_unchanged, read_unchanged
from data_cache.source_dataset import open_source_dataset
from data_cache.splits import make_split
from data_cache.system.devices import resolve_device
from data_cache.system.lock import writer_lock
from data_cache.views import View
from data_cache.writer import CacheWriter
from pipeline.config import ClusterConfig
from pipeline.dask.run import Workers, run_shards
from pipeline.encode import DECODERS
from pipeline.masks.masker import Masker, has_tokens
from pipeline.masks.model import ModelSettings, TokenModel
from pipeline.masks.source import ModelSource
from pipeline.shard_job import DISK_FULL, ShardReport, absolute

MIN_VIEWS = 8
"""If no view of a shard has finite tokens, and it has at least so many, the model is at fault and not the images."""


class ClusteredImages(NamedTuple):
    """The number of images that were clustered, and the names of those whose tokens overflowed in some view."""

    images: int
    overflowed: list[str]


@dataclass(frozen=True)
class ClusterJob:
    """A resolved clustering, small enough to be sent to other processes.

    Args:
        cache: the cache, whose features are finished.
        name: the mask set.
        dataset: the images, in the order of the cache.
        masker: the clustering.
        tokens: what the mask set records about tokens that are not CLIP's.
        model: the vision model that computes them; without it, the stored tokens are read.

    """

    cache: Path
    name: str
    dataset: Dataset
    masker: Masker
    tokens: Mapping[str, Any] | None = None
    model: ModelSettings | None = None

    @property
    def shards_per_worker(self) -> int:
        """Two: one is clustered while the other is read or written. Each holds the tokens that are to be stored."""
        return 2

    @property
    def attributes(self) -> dict[str, Any]:
        """The settings, as stored in the attributes of the mask set."""
        tokens = {"tokens": dict(self.tokens)} if self.tokens else {}
        origin = {"origin": self.model.source.origin} if self.model else {}
        return self.masker.attributes() | tokens | origin

    def with_absolute_paths(self) -> "ClusterJob":
        """The same job for machines that share the file system but not the working directory."""
        model = self.model and replace(self.model, source=ModelSource(self.model.source.origin))
        return replace(self, cache=self.cache.absolute(), dataset=absolute(self.dataset), model=model)

    def check(self, shard: int) -> None:
        """Raise UserError if the features or tokens of a shard are not done, or the model is not the recorded one."""
        cache = Cache(self.cache)
        tokens = "" if self.model else cache.tokens_owner(self.name)
        cache.check_done(tokens or DEFAULT_MASKS, shard)
        if self.model:
            self.model.load()

    def run(self, shard: int, progress: Progress) -> ShardReport:
        """Cluster one shard and write its masks, and its tokens if they are new and to be stored."""
        cache = CacheWriter(self.cache)
        self.check(shard)
        model = self.model and self.model.load()
        masker = replace(self.masker, device=str(model.device)) if model else self.masker
        span, layout = cache.layout.span(shard), cache.mask_layout(self.name)
        images, views = span.stop - span.start, layout.views
        fields = ("label", "count", *(["dense"] if layout.dense != "none" else []))
        blank = blank_fields(fields, layout, images, masker.dtype)
        label, counts, stored = blank["label"], blank["count"], blank.get("dense")
        missing = np.zeros((images, views), bool)
        source = _Views(cache, self.dataset, shard, cache.tokens_model(self.name)["image_size"])
        images_per_batch = max(1, masker.batch // views)
        for start in range(0, len(source.rows), images_per_batch):
            batch = source.rows[start : start + images_per_batch]
            if model:
                labels, dense = source.encoded(batch, model)
                missing[batch] = ~has_tokens(dense).reshape(len(batch), views)
            else:
                labels = source.labels(batch)
                dense = np.concatenate([cache.dense(span.start + row, self.name) for row in batch])
            masks = masker(dense, labels)
            label[batch], counts[batch] = (part.reshape(len(batch), views, *part.shape[1:]) for part in masks)
            if stored is not None:
                stored[batch] = dense.reshape(len(batch), views, *dense.shape[1:])
            progress(len(batch))
        names = self._overflowed({row: missing[row] for row in source.rows}, span.start) if model else ()
        progress(images - len(source.rows))
        cache.write_masks(shard, label, counts, self.name, stored)
        return ShardReport(overflowed=names)

    def _overflowed(self, missing: Mapping[int, Bool[np.ndarray, "view"]], first: int) -> tuple[str, ...]:
        """Names of the images of a shard with views without tokens. Raises UserError if the model is at fault."""
        names = tuple(self.dataset.ids[first + row] for row, views in missing.items() if views.any())
        if names and all(views.all() for views in missing.values()) and sum(map(len, missing.values())) >= MIN_VIEWS:
            raise UserError(
                f"--masks-from {self.model.source.spec}: its tokens are not finite in float16 for {names[0]} and every "
                "other image of its shard; choose another model"
            )
        return names


class _Views:
    """The views of a shard's images, at the input size of the model whose tokens are clustered."""

    def __init__(self, cache: CacheWriter, dataset: Dataset, shard: int, size: int) -> None:
        self._dataset, self._first, self._size = dataset, cache.layout.span(shard).start, size
        stored = cache.read_fields(shard, ("status", "content_hash", "label_hash", "box", "flip"))
        status, *digests, self._box, self._flip = stored.values()
        self._digest = list(zip(*digests, strict=True))
        self.rows = [row for row, reason in enumerate(status) if reason == OK]
        """Images that did not fail."""

    def labels(self, rows: Sequence[int]) -> list[UInt8[np.ndarray, "size size"] | None]:
        """The label map of each view of some images. Raises UserError if one has changed."""
        found = ((row, read_label_unchanged(self._dataset, self._first + row, self._digest[row][1])) for row in rows)
        return [crop_label(label, view, self._size) for row, label in found for view in self._views(row)]

    def encoded(
        self, rows: Sequence[int], model: TokenModel
    ) -> tuple[list[UInt8[np.ndarray, "size size"] | None], Float16[np.ndarray, "view y x channel"]]:
        """The label map and the tokens of each view of some images. Raises UserError if an image has changed."""
        with ThreadPoolExecutor(DECODERS) as pool:
            crops = [crop for image in pool.map(self._crops, rows) for crop in image]
        return [label for _, label in crops], model.tokens(np.stack([pixels for pixels, _ in crops]))

    def _crops(self, row: int) -> list[tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"] | None]]:
        sample = read_unchanged(self._dataset, self._first + row, self._digest[row])
        views = self._views(row)
        return [(crop_image(sample.image, v, self._size), crop_label(sample.label, v, self._size)) for v in views]

    def _views(self, row: int) -> list[View]:
        return [View.stored(box, flip) for box, flip in zip(self._box[row], self._flip[row], strict=True)]


def recluster(config: ClusterConfig, progress: Progress = ignore, log: Log = ignore) -> int:
    """Cluster the shards that are not yet in the mask set. Returns their number of images.

    `progress` counts images done; `log` receives a line about the workers. If it is killed, calling it again resumes
    with the unfinished shards.

    Raises:
        UsageError: a mask set of this name has other settings, or a setting is invalid.
        UserError: the cache has no dense tokens or is not finished, its images have changed, or the Dask cluster
            cannot be used.

    """
    workers = Workers.of(config.workers, config.scheduler, "auto")
    cache = CacheWriter(config.cache)
    masks = cache.mask_name(config.masks)
    cache.check_dense(masks)
    if cache.pending_shards(masks):
        raise UserError(f"{cache.path}: not finished; run the same `precompute` command again first")
    dataset = open_source_dataset(cache, config.root).uncached()
    owner, layout = cache.tokens_owner(masks), cache.mask_layout(masks)
    tokens = {"grid": list(layout.grid), "channels": layout.channels, "dense": "none", "masks": owner}
    job = ClusterJob(config.cache, config.name, dataset, _masker(config, cache, masks), tokens if owner else None)
    with disk_errors(job.cache, DISK_FULL), writer_lock(job.cache), moved_cache_errors(job.cache):
        CacheWriter(job.cache).remove_leftovers()
        return finish_masks(job, progress, workers, log).images


def finish_masks(
    job: ClusterJob, progress: Progress, workers: Workers, log: Log = ignore, flag: str = "--name"
) -> ClusteredImages:
    """Add a mask set unless the cache has it, and cluster its pending shards.

    The caller must hold the writer's lock. `log` receives a line about the workers, and the warning of the result, even
    if this is interrupted. `flag` is the option that named the set.

    Raises UsageError if the cache has a mask set of this name with other settings.
    """
    cache = CacheWriter(job.cache)  # another process may have added a set in the meantime
    if job.name not in cache.masks:
        cache.add_masks(job.name, job.attributes)
        cache = CacheWriter(job.cache)
    cache.check_mask_settings(job.name, job.attributes, flag)
    pending, names = cache.pending_shards(job.name), list[str]()
    try:
        for report in run_shards(job, pending, progress, workers, log):
            names += report.overflowed
    finally:
        if names:
            log(
                f"warning: --masks-from {job.model.source.spec}: {count(len(names), 'image')} without pseudo labels in "
                f"{job.name}, in views whose tokens are not finite in float16: {first_names(sorted(names))}"
            )
    return ClusteredImages(cache.layout.images_in(pending), sorted(names))


def _masker(config: ClusterConfig, cache: Cache, masks: str) -> Masker:
    """The clustering of the new set: the settings of the set `masks`, overridden by those of `config`."""
    changes: dict[str, Any] = {name: getattr(config, name) for name in ("windows", "threshold", "updates")}
    if config.unseen is not None:
        dataset = cache.fingerprint["dataset"]["name"]
        changes["split"] = make_split(dataset, cache.texts().classes, config.unseen)
    # not all machines of a cluster may have a GPU, and a CPU gives the same labels
    device = "cpu" if config.scheduler else str(resolve_device("auto"))
    changed = {name: value for name, value in changes.items() if value is not None}
    return replace(Masker.of_masks(cache, masks, device, config.kmeans), **changed)
