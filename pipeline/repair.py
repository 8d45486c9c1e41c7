"""Damaged shards of a cache made again, each in its place, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data_cache.damage import Files, damaged_parts, damaged_shards, files_of
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.lock import writer_lock
from data_cache.source import photographs
from data_cache.store import MASKS, Cache
from data_cache.views import Cropping
from pipeline.encode import Encoder
from pipeline.live import masker_of, same_clip
from pipeline.recluster import Job

WHOLE = "names, texts and metadata cannot be made again in their place; run `precompute` with --overwrite"


@dataclass(frozen=True)
class Repaired:
    """Which shards were made again, and how many of them came out as their records had said."""

    features: list[int]
    masks: dict[str, list[int]]
    same: int

    @property
    def shards(self) -> int:
        """How many, over features and mask sets."""
        return len(self.features) + sum(map(len, self.masks.values()))

    def __str__(self) -> str:
        """One line."""
        if not self.shards:
            return "no shard is damaged; what is not done, `precompute` or `cluster` finishes"
        parts = {"features": self.features, **{f"masks {name}": shards for name, shards in self.masks.items()}}
        told = "; ".join(f"{part}: {', '.join(map(str, shards))}" for part, shards in parts.items() if shards)
        return f"{self.shards} shards made again ({told}), {self.same} exactly as they were"


def repair(
    path: Path,
    root: Path | None,
    device: torch.device,
    clip: str | None = None,
    weights: str | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> Repaired:
    """Make the damaged shards of a cache again: features and stage 1's masks by CLIP, other masks from dense tokens.

    `tell` hears of images done. Killed, the shards it was at count as not done: `precompute` and `cluster` finish them.

    Raises:
        UserError: what is damaged is no shard, or the CLIP or the photographs are not those of the cache.

    """
    with writer_lock(path):
        cache = Cache(path, mode="r+")
        if whole := damaged_parts(cache):
            raise UserError(f"{path}: damaged in {', '.join(whole)}; {WHOLE}")
        features, sets = _damaged(cache)
        dataset, same = photographs(cache, root), 0
        if features:
            _check_unchanged(cache, dataset, features)
            about, parts = cache.fingerprint, ("", f"masks/{MASKS}")
            teacher = same_clip(about["clip"], cache.attributes["recorded"].get("clip"), clip, weights, device)
            masker = masker_of(cache, cache.mask_attributes(MASKS), dataset.classes, str(device))
            encoder = Encoder(teacher, dataset, masker, cache.layout, Cropping.stored(about["views"]))
            for shard in features:
                before = _forgotten(cache, shard, parts)
                with encoder.shard(shard, tell=tell) as data:
                    cache.write_shard(shard, data, MASKS)
                same += files_of(cache, shard, parts) == before
        for name, shards in sets.items():
            masker = masker_of(cache, cache.mask_attributes(name), dataset.classes, str(device))
            job = Job(path, name, dataset, masker)
            for shard in shards:
                before = _forgotten(cache, shard, (f"masks/{name}",))
                job.run(shard, tell)
                same += files_of(cache, shard, (f"masks/{name}",)) == before
        cache.sweep()
    return Repaired(features, sets, same)


def _damaged(cache: Cache) -> tuple[list[int], dict[str, list[int]]]:
    """The shards that features must be made again for, and those of each further mask set."""
    bad = {part: damaged_shards(cache, part) for part in ("", *(f"masks/{name}" for name in cache.masks))}
    features = sorted({*bad.pop(""), *bad.pop(f"masks/{MASKS}")})
    return features, {part.removeprefix("masks/"): shards for part, shards in bad.items() if shards}


def _forgotten(cache: Cache, shard: int, parts: Sequence[str]) -> list[Files | None]:
    """Call a shard not done, and return what its records said."""
    told = files_of(cache, shard, parts)
    for part in parts:
        cache.journal(part).erase(shard)
    return told


def _check_unchanged(cache: Cache, dataset: Dataset, shards: list[int]) -> None:
    for shard in shards:
        span = cache.layout.span(shard)
        try:
            stored = cache.digests(span)
        except UserError:
            continue  # they are what is damaged
        for index, digest in enumerate(stored, span.start):
            if digest[0] and dataset.digest(index) != digest:
                raise UserError(
                    f"{dataset.path(index)}: it or its label map changed since it was encoded; restore it, then repair"
                )
