"""Precompute, train and evaluate as steps of an experiment: each resumes where it was interrupted."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from data_cache.callbacks import OnUpdate, OnWarnings, ProgressBar, ignore
from data_cache.datasets.base import Dataset
from data_cache.errors import InterruptError, UsageError
from data_cache.reader import Cache
from data_cache.system.devices import resolve_device
from experiments.figures import training_picture
from pipeline.config import PrecomputeConfig
from pipeline.live import LiveTeacher, live_teacher
from pipeline.plan import plan
from pipeline.precompute import execute
from trainer import checkpoint, loop, monitor
from trainer.checkpoint import Checkpoint
from trainer.checkpoint_folders import checkpoints
from trainer.config import TrainConfig
from trainer.evaluate import Evaluation, evaluate
from trainer.segmenter import Segmenter


def silent(verb: str, total: int | None, unit: str) -> AbstractContextManager[Callable[..., None]]:
    """No progress bar."""
    return nullcontext(lambda *_, **__: None)


def updates(advance: Callable[..., None], config: TrainConfig) -> OnUpdate:
    """The callback that shows each update in a progress bar, or the lines of the log where there is no terminal."""
    first = None

    def on_update(line: dict[str, float]) -> None:
        nonlocal first
        first = first or line["step"]
        estimate, warning = "", ""
        if line["step"] - first + 1 == monitor.ESTIMATED_AFTER:
            estimate, warning = monitor.estimate(line, config)
        advance(
            line["step"],
            absolute=True,
            note=monitor.brief(line),
            rate=line["images_per_second"],
            eta=line["eta_seconds"],
            line=monitor.describe(line, config) if monitor.is_logged(line, config) else "",
            notices=(monitor.validated(line), estimate),
            warning=warning,
        )

    return on_update


class StageTimer:
    """Seconds per stage in this call. Work that had been done before takes none."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, start: float) -> None:
        """Add the time since `start` (`time.perf_counter`) to a stage."""
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 1)


def live_for(config: TrainConfig) -> LiveTeacher:
    """The live teacher with the settings of a run's cache. Raises as `live_teacher` does."""
    if config.cache is None:
        raise UsageError("--cache: a value is missing")
    cache = Cache(Path(config.cache))
    root = Path(config.root) if config.root else None
    return live_teacher(cache, cache.mask_name(config.masks), root, resolve_device(config.device))


def precompute_stage(
    settings: PrecomputeConfig,
    progress_bar: ProgressBar,
    timer: StageTimer,
    max_failures: float = 0,
    on_warnings: OnWarnings = ignore,
) -> Path:
    """Make or finish a cache and return its path. Raises as `plan` does, and UserError for too many failed images."""
    start = time.perf_counter()
    work = plan(settings)
    on_warnings(work.warnings)
    with progress_bar("encoding", work.work, "images") as advance:
        execute(work, advance).check(max_failures)
    timer.add("precompute", start)
    return settings.cache


def train_stage(
    config: TrainConfig, run: Path, progress_bar: ProgressBar, timer: StageTimer, device: str = "cpu"
) -> Checkpoint:
    """Train a student, or resume, and load it on `device`. Raises as `train` does."""
    start = time.perf_counter()
    with progress_bar("training", config.iterations, "images") as advance:
        try:
            resume, on_update = bool(checkpoints(run)), updates(advance, config)
            loop.train(config, run, resume, on_update=on_update, draw=training_picture)
        except InterruptError:
            raise InterruptError("interrupted; the last update is saved; rerun the same command to resume") from None
    loaded = checkpoint.load(run, resolve_device(device))
    timer.add("train", start)
    return loaded


def evaluate_stage(
    segmenter: Segmenter, images: Dataset, gammas: Sequence[float], progress_bar: ProgressBar, timer: StageTimer
) -> Evaluation:
    """Evaluate a student, or any other segmenter, at some gammas."""
    start = time.perf_counter()
    with progress_bar("evaluating", len(images), "images") as advance:
        evaluation = evaluate(segmenter, images, gammas, advance)
    timer.add("evaluate", start)
    return evaluation
