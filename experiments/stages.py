"""Precompute, train and evaluate as steps of an experiment: each resumes where it was interrupted."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from data_cache.callbacks import OnUpdate, ProgressBar
from data_cache.datasets.base import Dataset
from data_cache.errors import InterruptError, UsageError
from data_cache.reader import Cache
from data_cache.system.devices import resolve_device
from pipeline.config import PrecomputeConfig
from pipeline.live import LiveTeacher, live_teacher
from pipeline.plan import plan
from pipeline.precompute import execute
from trainer import checkpoint, loop
from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.evaluate import Evaluation, evaluate
from trainer.segmenter import Segmenter


def silent(verb: str, total: int | None, unit: str) -> AbstractContextManager[Callable[..., None]]:
    """No progress bar."""
    return nullcontext(lambda *_, **__: None)


def updates(advance: Callable[..., None]) -> OnUpdate:
    """What moves a progress bar by the logged lines of training."""
    return lambda line: advance(line["step"], absolute=True, note=f"loss {line['total']:.3f}")


class Clock:
    """Seconds each stage took in this call, by name: what was there already took none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, start: float) -> None:
        """Count the time since `start` (`time.perf_counter`) for a stage."""
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 1)


def live_for(config: TrainConfig) -> LiveTeacher:
    """The live teacher with everything the cache of a run was made with. Raises what `live_teacher` raises."""
    if config.cache is None:
        raise UsageError("--cache: a value is missing")
    cache = Cache(Path(config.cache))
    root = Path(config.root) if config.root else None
    return live_teacher(cache, cache.mask_name(config.masks), root, resolve_device(config.device))


def cached(settings: PrecomputeConfig, progress_bar: ProgressBar, clock: Clock, max_failures: float = 0) -> Path:
    """A finished cache with these settings. Raises what `plan` raises, and UserError for too many failed images."""
    start = time.perf_counter()
    work = plan(settings)
    with progress_bar("encoding", work.images, "images") as advance:
        execute(work, advance).check(max_failures)
    clock.add("precompute", start)
    return settings.cache


def trained(config: TrainConfig, run: Path, progress_bar: ProgressBar, clock: Clock, device: str = "cpu") -> Checkpoint:
    """A student trained with these settings, on a device for use. Raises what `train` raises."""
    start = time.perf_counter()
    with progress_bar("training", config.iterations, "updates") as advance:
        try:
            loop.train(config, run, resume=bool(checkpoint.checkpoints(run)), on_update=updates(advance))
        except InterruptError:
            raise InterruptError("interrupted; the last update is saved; rerun the same command to resume") from None
    student = checkpoint.load(run, resolve_device(device))
    clock.add("train", start)
    return student


def measured(
    segments: Segmenter, images: Dataset, gammas: Sequence[float], progress_bar: ProgressBar, clock: Clock
) -> Evaluation:
    """What a student, or whatever else names a class for every pixel, gets right at some gammas."""
    start = time.perf_counter()
    with progress_bar("evaluating", len(images), "images") as advance:
        result = evaluate(segments, images, gammas, advance)
    clock.add("evaluate", start)
    return result
