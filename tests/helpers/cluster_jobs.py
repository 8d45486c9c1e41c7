"""Jobs for the workers of a real cluster, which import this module."""

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from data_cache.datasets.scenes import SCENES
from data_cache.datasets.worlds import Scenes


@dataclass(frozen=True)
class TracedJob:
    """Touches a file for each model it builds and each shard it starts; shard `endless` runs until it is stopped."""

    cache: Path
    endless: int | None = None
    shards_per_worker: int = 2
    dataset: Scenes = field(default_factory=lambda: Scenes(SCENES, "train", 1))

    @cached_property
    def model(self) -> int:
        (self.cache / f"model_{os.getpid()}_{time.monotonic_ns()}").touch()
        return os.getpid()

    def with_absolute_paths(self):
        return self

    def run(self, shard, progress):
        assert self.model == os.getpid()
        (self.cache / f"begun_{shard}_{time.monotonic_ns()}").touch()
        progress(2)
        while shard == self.endless:
            time.sleep(0.02)
            try:
                progress(0)
            except RuntimeError:
                (self.cache / f"stopped_{shard}").touch()
                raise
        time.sleep(0.05)
        progress(1)
        return {"work": float(shard)}


@dataclass(frozen=True)
class WorkerKillingJob(TracedJob):
    """Shard 1 kills its worker, as the kernel does when memory runs out."""

    def run(self, shard, progress):
        if shard == 1:
            os.kill(os.getpid(), 9)
        return super().run(shard, progress)
