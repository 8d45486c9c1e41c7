"""Precompute, train and evaluate as steps of an experiment: each goes on where it was interrupted."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import InterruptError
from pipeline.precompute import Settings, execute, plan
from trainer import checkpoint, loop
from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.evaluate import Evaluation, Segments, evaluate

Progress = Callable[[str, int | None, str], AbstractContextManager[Callable[..., None]]]
"""Opens a progress bar: (verb, total if it is known, unit) -> a call that advances it."""


def silent(verb: str, total: int | None, unit: str) -> AbstractContextManager[Callable[..., None]]:
    """No progress bar."""
    return nullcontext(lambda *_, **__: None)


def updates(advance: Callable[..., None]) -> Callable[[dict[str, float]], None]:
    """What moves a progress bar by the logged lines of training."""
    return lambda line: advance(line["step"], absolute=True, note=f"loss {line['total']:.3f}")


class Clock:
    """Seconds each stage took in this call, by name: what was there already took none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, start: float) -> None:
        """Count the time since `start` (`time.perf_counter`) for a stage."""
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 1)


def cached(settings: Settings, progress: Progress, clock: Clock, max_failures: float = 0) -> Path:
    """A finished cache with these settings. Raises what `plan` raises, and UserError for too many failed images."""
    start = time.perf_counter()
    work = plan(settings)
    with progress("encoding", work.images, "images") as advance:
        execute(work, advance).check(max_failures)
    clock.add("precompute", start)
    return settings.cache


def trained(config: TrainConfig, run: Path, progress: Progress, clock: Clock, device: str = "cpu") -> Checkpoint:
    """A student trained with these settings, on a device for use. Raises what `train` raises."""
    start = time.perf_counter()
    with progress("training", config.iterations, "updates") as advance:
        try:
            loop.train(config, run, resume=any(run.glob("step_*")), tell=updates(advance))
        except InterruptError:
            raise InterruptError("interrupted; the update is saved, the same command goes on") from None
    student = checkpoint.load(run, resolve_device(device))
    clock.add("train", start)
    return student


def measured(
    segments: Segments, images: Dataset, gammas: Sequence[float], progress: Progress, clock: Clock
) -> Evaluation:
    """What a student, or whatever else names a class for every pixel, gets right at some gammas."""
    start = time.perf_counter()
    with progress("evaluating", len(images), "images") as advance:
        result = evaluate(segments, images, gammas, advance)
    clock.add("evaluate", start)
    return result
