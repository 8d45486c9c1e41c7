"""How long each stage of precompute took, all threads together."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

STAGES = ("decode", "encode", "cluster", "write", "wait")
"""Stages overlap, and several threads may be in one: seconds may add up to more than passed. `wait` is when nothing was
decoded for CLIP to look at."""


class StageTimes:
    """Seconds by stage, counted from any thread."""

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
