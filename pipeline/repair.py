"""Repairs a cache: recomputes only its damaged shards, in place."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_cache.callbacks import Progress, ignore
from data_cache.datasets.base import Dataset
from data_cache.errors import UnreadableError, UserError, disk_errors
from data_cache.integrity import Files, damaged_parts, damaged_shards, recorded_files
from data_cache.layout import DEFAULT_MASKS
from data_cache.messages import count
from data_cache.moved import moved_cache_errors
from data_cache.reader import Cache
from data_cache.sample import check_unchanged
from data_cache.source_dataset import open_source_dataset
from data_cache.system.lock import writer_lock
from data_cache.views import Cropping, check_resampling
from data_cache.writer import CacheWriter
from pipeline.encode import Encoder
from pipeline.masks.masker import Masker
from pipeline.masks.model import ModelSettings
from pipeline.recluster import ClusterJob
from pipeline.teacher.rebuild import rebuild_teacher

FEATURE_PARTS = ("", f"masks/{DEFAULT_MASKS}")
"""The parts of the cache that CLIP writes, each with its own journal."""
NOT_REPAIRABLE = "names, texts and metadata cannot be recomputed in place; run `precompute` with --overwrite"


@dataclass(frozen=True)
class RepairReport:
    """Which shards were recomputed, and how many of them have the recorded checksums again."""

    features: list[int]
    masks: dict[str, list[int]]
    same: int

    @property
    def shards(self) -> int:
        """Number of recomputed shards, of features and mask sets together."""
        return len(self.features) + sum(map(len, self.masks.values()))

    def __str__(self) -> str:
        """One line."""
        if not self.shards:
            return "no shard is damaged; `precompute` or `cluster` finishes what is not done"
        parts = {"features": self.features, **{f"masks {name}": shards for name, shards in self.masks.items()}}
        listed = "; ".join(f"{part}: {', '.join(map(str, shards))}" for part, shards in parts.items() if shards)
        return f"{count(self.shards, 'shard')} recomputed ({listed}), {self.same} identical to before"


def repair(
    path: Path,
    root: Path | None,
    device: torch.device,
    clip: str | None = None,
    weights: str | None = None,
    masks_from: str | None = None,
    progress: Progress = ignore,
) -> RepairReport:
    """Recompute the damaged shards of a cache: features and stage 1's masks with CLIP, other masks from their tokens.

    `clip`, `weights` and `masks_from` say where the models are now, if they have moved. `progress` counts images done.
    If this is killed, shards under repair count as not done, and `precompute` and `cluster` finish them.

    Raises:
        UserError: something other than a shard is damaged, the CLIP or the images are not those of the cache, or the
            disk is full.
        UnreadableError: a file cannot be read at the moment, so it cannot be checked; nothing was changed.

    """
    disk_full = "shards under repair count as not done: free some space and run `precompute` again"
    with disk_errors(path, disk_full), writer_lock(path), moved_cache_errors(path):
        cache = CacheWriter(path)
        if parts := damaged_parts(cache):
            raise UserError(f"{path}: damaged in {', '.join(parts)}; {NOT_REPAIRABLE}")
        features, sets = _damaged(cache)
        dataset, same = open_source_dataset(cache, root), 0
        if features:
            check_resampling(path, cache.fingerprint)
            _check_unchanged(cache, dataset, features)
            encoder = _encoder(cache, dataset, device, clip, weights)
            for shard in features:
                before = _invalidate(cache, shard, FEATURE_PARTS)
                with encoder.shard(shard, progress=progress) as data:
                    cache.write_shard(shard, data, DEFAULT_MASKS)
                same += recorded_files(cache, shard, FEATURE_PARTS) == before
        # masks that were clustered again need the tokens that other sets store
        for name, shards in sorted(sets.items(), key=lambda one: cache.tokens_owner(one[0]) != one[0]):
            job = _cluster_job(cache, name, dataset, device, masks_from)
            if job.model:
                _check_unchanged(cache, dataset, shards)
            for shard in shards:
                job.check(shard)
                before = _invalidate(cache, shard, (f"masks/{name}",))
                job.run(shard, progress)
                same += recorded_files(cache, shard, (f"masks/{name}",)) == before
        cache.remove_leftovers()
    return RepairReport(features, sets, same)


def _damaged(cache: Cache) -> tuple[list[int], dict[str, list[int]]]:
    """The shards whose features must be recomputed, and those of each additional mask set."""
    damaged = {part: damaged_shards(cache, part) for part in ("", *(f"masks/{name}" for name in cache.masks))}
    features = sorted({*damaged.pop(""), *damaged.pop(f"masks/{DEFAULT_MASKS}")})
    return features, {part.removeprefix("masks/"): shards for part, shards in damaged.items() if shards}


def _encoder(cache: Cache, dataset: Dataset, device: torch.device, clip: str | None, weights: str | None) -> Encoder:
    fingerprint, origin = cache.fingerprint, cache.attributes["recorded"].get("clip")
    teacher = rebuild_teacher(fingerprint["clip"], origin, clip, weights, device)
    masker = Masker.of_masks(cache, DEFAULT_MASKS, str(device))
    return Encoder(teacher, dataset, masker, cache.layout, Cropping.stored(fingerprint["views"]))


def _cluster_job(cache: Cache, name: str, dataset: Dataset, device: torch.device, masks_from: str | None) -> ClusterJob:
    """The clustering of an additional mask set; if it has a model of its own, this computes the tokens again."""
    attributes, own = cache.mask_attributes(name), cache.tokens_owner(name) == name
    model = ModelSettings.of_masks(attributes, masks_from, device) if own else None
    masker = Masker.of_masks(cache, name, str(device))
    return ClusterJob(cache.path, name, dataset, masker, attributes.get("tokens"), model)


def _invalidate(cache: Cache, shard: int, parts: Sequence[str]) -> list[Files | None]:
    """Mark a shard as not done, and return the files that were recorded for it."""
    recorded = recorded_files(cache, shard, parts)
    for part in parts:
        cache.journal(part).clear(shard)
    return recorded


def _check_unchanged(cache: Cache, dataset: Dataset, shards: list[int]) -> None:
    for shard in shards:
        span = cache.layout.span(shard)
        try:
            stored = cache.digests(span)
        except UnreadableError:
            raise
        except UserError:
            continue  # the digests themselves are damaged
        for index, digest in enumerate(stored, span.start):
            if digest[0]:
                check_unchanged(dataset, index, digest)
