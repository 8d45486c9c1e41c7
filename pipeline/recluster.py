"""Clusters cached dense tokens again, without CLIP: adds a mask set to a cache."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_cache.arrays import blank_fields
from data_cache.callbacks import Log, Progress, ignore
from data_cache.content import OK
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError, disk_errors
from data_cache.layout import DEFAULT_MASKS
from data_cache.moved import moved_cache_errors
from data_cache.reader import Cache
from data_cache.sample import crop_label, read_label_unchanged
from data_cache.source_dataset import open_source_dataset
from data_cache.splits import make_split
from data_cache.system.devices import resolve_device
from data_cache.system.lock import writer_lock
from data_cache.views import View
from data_cache.writer import CacheWriter
from pipeline.config import ClusterConfig
from pipeline.dask.run import Workers, run_shards
from pipeline.masks.masker import Masker
from pipeline.shard_job import DISK_FULL, ShardReport, absolute


@dataclass(frozen=True)
class ClusterJob:
    """A resolved clustering, small enough to be sent to other processes."""

    cache: Path
    name: str
    dataset: Dataset
    masker: Masker

    def with_absolute_paths(self) -> "ClusterJob":
        """The same job for machines that share the file system but not the working directory."""
        return replace(self, cache=self.cache.absolute(), dataset=absolute(self.dataset))

    def run(self, shard: int, progress: Progress) -> ShardReport:
        """Cluster one shard and write its masks."""
        cache = CacheWriter(self.cache)
        span, size = cache.layout.span(shard), cache.fingerprint["clip"]["image_size"]
        images, views = span.stop - span.start, cache.layout.views
        label, count = blank_fields(("label", "count"), cache.layout, images, self.masker.dtype).values()
        stored = cache.read_fields(shard, ("status", "label_hash", "box", "flip"))
        status, digest, box, flip = stored.values()
        rows = [row for row in range(images) if status[row] == OK]
        images_per_batch = max(1, self.masker.batch // views)
        for start in range(0, len(rows), images_per_batch):
            batch = rows[start : start + images_per_batch]
            dense = np.concatenate([cache.dense(span.start + row) for row in batch])
            labels = []
            for row in batch:
                label_map = read_label_unchanged(self.dataset, span.start + row, digest[row])
                crops = [View.stored(box[row, view], flip[row, view]) for view in range(views)]
                labels += [crop_label(label_map, crop, size) for crop in crops]
            masks = self.masker(dense, labels)
            label[batch], count[batch] = (part.reshape(len(batch), views, *part.shape[1:]) for part in masks)
            progress(len(batch))
        progress(images - len(rows))
        cache.write_masks(shard, label, count, self.name)
        return ShardReport()


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
    if not re.fullmatch(r"\w{1,60}", config.name):
        raise UsageError(f"--name {config.name!r}: only letters, digits and _ are allowed, at most 60")
    cache.check_dense()
    if cache.pending_shards(DEFAULT_MASKS):
        raise UserError(f"{cache.path}: not finished; run the same `precompute` command again first")
    dataset = open_source_dataset(cache, config.root).uncached()
    job = ClusterJob(config.cache, config.name, dataset, _masker(config, cache))
    with disk_errors(job.cache, DISK_FULL), writer_lock(job.cache), moved_cache_errors(job.cache):
        cache = CacheWriter(job.cache)  # another process may have added a set in the meantime
        cache.remove_leftovers()
        if job.name not in cache.masks:
            cache.add_masks(job.name, job.masker.attributes())
            cache = CacheWriter(job.cache)
        cache.check_mask_settings(job.name, job.masker.attributes())
        pending = cache.pending_shards(job.name)
        for _ in run_shards(job, pending, progress, workers, log):
            pass
    return cache.layout.images_in(pending)


def _masker(config: ClusterConfig, cache: Cache) -> Masker:
    """The clustering of the new set: stage 1's settings, overridden by those of `config`."""
    classes = cache.texts().classes
    changes = {name: getattr(config, name) for name in ("windows", "threshold", "updates")}
    if config.unseen is not None:
        changes["unseen"] = make_split(cache.fingerprint["dataset"]["name"], classes, config.unseen).unseen
    attributes = cache.mask_attributes(DEFAULT_MASKS)
    attributes |= {name: value for name, value in changes.items() if value is not None}
    # not all machines of a cluster may have a GPU, and a CPU gives the same labels
    device = "cpu" if config.scheduler else str(resolve_device("auto"))
    return Masker.from_attributes(attributes, classes, cache.layout.grid, device, config.kmeans)
