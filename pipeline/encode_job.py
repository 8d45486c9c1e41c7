"""The job of `precompute`: a resolved run that any process can do shard by shard."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any

import torch

from data_cache.callbacks import Progress
from data_cache.content import Shard
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.reader import Cache
from data_cache.survey import Survey
from data_cache.system.devices import resolve_device
from data_cache.writer import CacheWriter
from pipeline.config import PrecomputeConfig
from pipeline.encode import Encoder
from pipeline.masks.masker import Masker
from pipeline.shard_job import ShardReport, StageTimes, absolute
from pipeline.teacher.clip import FrozenCLIP, Precision
from pipeline.teacher.protocol import Teacher
from pipeline.teacher.recipes import OUTPUT
from pipeline.teacher.weights import CLIPSource

_LOADING = Lock()


@lru_cache(maxsize=1)
def load_clip(
    source: CLIPSource, precision: Precision, device: str, compiled: bool = False, recipe: str = OUTPUT
) -> Teacher:
    """The teacher, loaded once per process."""
    return FrozenCLIP(source, precision, torch.device(device), compiled, recipe)


@dataclass(frozen=True)
class EncodeJob:
    """A resolved run, small enough to be sent to other processes; each builds its own encoder from it, once.

    Args:
        config: the settings of the run.
        dataset: the images, in the order of the cache.
        precision: of CLIP's vision tower, resolved.
        masker: the clustering; its device is the one CLIP runs on.
        layout: the sizes of the cache.
        weights_hash: SHA-256 of the weights that another process must find under the same name; empty for the process
            that made the plan, which has CLIP in memory.

    """

    config: PrecomputeConfig
    dataset: Dataset
    precision: Precision
    masker: Masker
    layout: Layout
    weights_hash: str = ""

    @property
    def shards_per_worker(self) -> int:
        """Three: one is decoded, one encoded by CLIP, and one written."""
        return 3

    @property
    def cache(self) -> Path:
        """The cache it writes."""
        return self.config.cache

    def with_absolute_paths(self) -> "EncodeJob":
        """The same job for machines that share the file system but not the working directory."""
        clip = self.config.clip_source.origin
        config = replace(
            self.config, clip=clip["clip"], clip_weights=clip["weights"], cache=self.config.cache.absolute()
        )
        return replace(self, config=config, dataset=absolute(self.dataset))

    @property
    def encoder(self) -> Encoder:
        """The encoder of this process, for all its threads.

        Raises UserError if the CLIP found here is not the one of the plan.
        """
        with _LOADING:
            return self._encoder

    @cached_property
    def _encoder(self) -> Encoder:
        config = self.config
        options = config.compile, config.dense_recipe
        # machines of a cluster may differ in their devices
        device = resolve_device(config.device if config.scheduler else self.masker.device)
        if not self.weights_hash:
            clip = load_clip(config.clip_source, self.precision, str(device), *options)
        else:
            clip = FrozenCLIP(config.clip_source, self.precision, device, *options)
            if clip.weights_hash != self.weights_hash:
                raise UserError(
                    f"--clip-weights {clip.origin['weights']}: {gethostname()} has other weights of that name; "
                    "give all machines the same file"
                )
        return Encoder(clip, self.dataset, replace(self.masker, device=str(device)), self.layout, config.cropping)

    @cached_property
    def _writer(self) -> CacheWriter:
        """The cache, opened once per process: while the run holds the writer's lock, its metadata does not change."""
        return CacheWriter(self.cache)

    def __getstate__(self) -> dict[str, Any]:
        """What is sent: without the model and its locks, and without an open cache."""
        return {name: value for name, value in vars(self).items() if name not in ("_encoder", "_writer")}

    def pending_shards(self, cache: Cache) -> list[int]:
        """The shards that are not done, or that hold failed images to be encoded again."""
        failed = cache.failed_shards() if self.config.retry_failed else ()
        return sorted({*cache.pending_shards(DEFAULT_MASKS), *failed})

    def run(self, shard: int, progress: Progress) -> ShardReport:
        """Encode and write what is missing of one shard."""
        cache = self._writer
        rows, kept = cache.rows_to_encode(shard, self.config.retry_failed), None
        if len(rows) < self.layout.images_in([shard]):
            kept = cache.read_shard(shard)
            cache.invalidate_shard(shard)
        times, surveys = StageTimes(), []
        with self.encoder.shard(shard, rows, progress, times, surveys.append) as data, times("write"):
            if kept:
                _keep_other_rows(data, kept, rows)
            cache.write_shard(shard, data, DEFAULT_MASKS, rows if kept else None)
        return ShardReport(times.seconds, sum(surveys, Survey()))


def _keep_other_rows(shard: Shard, stored: Shard, rows: Sequence[int]) -> None:
    """Copy all images of a shard but `rows` from what is stored; dense tokens stay where they are."""
    encoded = set(rows)
    others = [row for row in range(len(stored.status)) if row not in encoded]
    for name in (field.name for field in fields(Shard) if field.name != "dense"):
        target, source = getattr(shard, name), getattr(stored, name)
        for row in others:
            target[row] = source[row]
