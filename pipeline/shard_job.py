"""The work of one shard: what a job can do, what it reports, and how long its stages took."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Protocol, Self

from data_cache.callbacks import Progress
from data_cache.datasets.base import Dataset
from data_cache.survey import Survey

DISK_FULL = "finished shards are kept: free some space and rerun the same command"
STAGES = ("decode", "encode", "cluster", "write", "wait")
"""Stages overlap, and several threads may be in one, so their seconds may add up to more than the run took. `wait` is
the time in which no decoded batch was ready for CLIP."""


@dataclass(frozen=True)
class ShardReport:
    """Seconds per stage, a survey of the images that were read, and the names of those whose tokens overflowed."""

    seconds: dict[str, float] = field(default_factory=dict)
    survey: Survey = field(default_factory=Survey)
    overflowed: tuple[str, ...] = ()


class ShardJob(Protocol):
    """Something that can compute and write a shard by its number."""

    @property
    def cache(self) -> Path:
        """The cache it writes."""

    @property
    def dataset(self) -> Dataset:
        """The dataset it reads."""

    @property
    def shards_per_worker(self) -> int:
        """Shards that a worker runs at once."""

    def with_absolute_paths(self) -> Self:
        """The same job for machines that share the file system but not the working directory."""

    def run(self, shard: int, progress: Progress) -> ShardReport:
        """Do shard number `shard`; `progress` counts images done.

        `progress` may raise if the shard is no longer needed: it must then be left undone.
        """


class StageTimes:
    """Seconds per stage, counted from any thread."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._lock = Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time inside for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[stage] += time.perf_counter() - start

    @property
    def seconds(self) -> dict[str, float]:
        """Of all stages so far, in their order."""
        return {stage: self._seconds[stage] for stage in STAGES if stage in self._seconds}


def absolute(dataset: Dataset) -> Dataset:
    """The same images, by paths that do not depend on the working directory."""
    return replace(dataset, root=dataset.root.absolute()) if dataset.root else dataset  # type: ignore[type-var]
