"""The content of a run's report: its history, its metrics at every gamma, figures, and what is missing."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, ProgressBar, ignore
from data_cache.class_list import class_lists
from data_cache.errors import InterruptError, UsageError, UserError
from data_cache.paths import cache_folder
from data_cache.reader import Cache
from data_cache.system.devices import resolve_device
from data_cache.system.files import read_errors
from experiments.config import ReportConfig
from experiments.figures import attention_figure, predictions_figure
from experiments.history import History, read_run
from experiments.show import training_cache, training_dataset
from experiments.stages import Clock, measured
from experiments.transfer import vocabulary_for_dataset
from trainer.checkpoint import Checkpoint, checkpoints, load
from trainer.evaluate import GRID, Evaluation
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from viewer.figure import Figure

MetricValues = Mapping[str, float | None]
"""pAcc, mIoU_S, mIoU_U and hIoU by these names; None where no class of a kind occurs."""


@dataclass(frozen=True)
class Measured:
    """The metrics of a run.

    Args:
        source: the images they were measured on, or the file they were read from.
        gamma: the gamma of `per_class`.
        sweep: the metrics at each gamma, ascending.
        per_class: IoU per class; None for a class that does not occur.
        unseen: names of the classes without labels in training.
        by_training_vocabulary: on another dataset than that of the training, the metrics with S as the classes that
            had labels in training.

    """

    source: str
    gamma: float
    sweep: Mapping[float, MetricValues]
    per_class: Mapping[str, float | None]
    unseen: frozenset[str]
    by_training_vocabulary: MetricValues | None = None


@dataclass
class RunReport:
    """What the page shows; `missing` has a line for each part that it lacks, with the reason."""

    history: History
    step: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    reproduced: Mapping[str, Any] | None = None
    predictions: Figure | None = None
    attention: Figure | None = None
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, part: str, requested: object = None) -> Iterator[None]:
        """Record a part that fails as missing; if an option `requested` it, the error is raised instead."""
        try:
            yield
        except (InterruptError, UsageError):
            raise
        except UserError as error:
            if requested is not None:
                raise
            self.missing.append(f"{part}: {error.args[0]}")


def gather(config: ReportConfig, progress_bar: ProgressBar, on_dataset: OnDataset = ignore) -> RunReport:
    """Read a run's folder, evaluate its newest checkpoint if the images are available, and draw figures.

    Raises:
        UsageError, UserError: not a run, or something that an option requests is not available.

    """
    report = RunReport(read_run(config.run))
    history = report.history
    if not history.lines:
        report.missing.append("curves: the log is empty so far")
    for folder in history.failed:
        report.missing.append(f"the training ended with a loss that was not finite; its last state is in {folder}")
    report.missing += history.damage
    student = _student(report, config)
    report.origin = student.card if student else _origin(report)
    if config.result:
        report.measured = read_result(config.result, student)
    report.reproduced = _reproduced(history.folder)
    if student is None:
        return report
    report.step = student.step
    with report.trying("metrics and predictions", config.dataset or config.root):
        _evaluate(report, student, config, progress_bar, on_dataset)
    with report.trying("attention", config.cache):
        own = config.dataset in (None, student.card["dataset"]["name"])
        cache = training_cache(student, config.cache, config.root if own else None)
        if config.pictures:
            views = [cache[index] for index in cache.first_ok(config.pictures)]
            report.attention = attention_figure(student, views)
    return report


def read_result(file: Path, student: Checkpoint | None) -> Measured:
    """Read what `evaluate --json` printed, or what `reproduce` wrote. Raises UserError for anything else."""
    try:
        with read_errors(file):
            result = json.loads(file.read_text(encoding="utf-8"))
        result = result.get("metrics", result)
        rows = [result, *result.get("sweep", []), *([result["picked"]] if "picked" in result else [])]
        sweep = {float(one["gamma"]): shares({name: one[name] for name in Metrics.COLUMNS}) for one in rows}
        per_class, gamma = shares(result["per_class"]), float(result["gamma"])
        by_training = shares(result["by_training_vocabulary"]) if "by_training_vocabulary" in result else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--result {file}: not what `evaluate --json` prints ({type(error).__name__}: {error})"
        ) from None
    splits = [(student.split.classes, student.split.unseen)] if student else []
    splits += [(known.classes, known.unseen) for known in class_lists().values()]
    unseen = next((hidden for classes, hidden in splits if set(classes) == set(per_class)), ())
    return Measured(f"read from {file}", gamma, dict(sorted(sweep.items())), per_class, frozenset(unseen), by_training)


def shares(values: Mapping[str, float | None]) -> MetricValues:
    """The same values, checked. Raises ValueError or TypeError if one is not in 0..1."""
    for name, value in values.items():
        if name != "gamma" and value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, not a share in 0..1")
    return values


def _student(report: RunReport, config: ReportConfig) -> Checkpoint | None:
    history = report.history
    if not checkpoints(history.folder):
        first = min(history.config.checkpoint_every, history.config.iterations)
        report.missing.append(f"metrics and pictures: no checkpoint yet; the first will be saved at update {first}")
        return None
    with report.trying("metrics and pictures"):
        return load(history.folder, resolve_device(config.device))
    return None


def _evaluate(
    report: RunReport, student: Checkpoint, config: ReportConfig, progress_bar: ProgressBar, on_dataset: OnDataset
) -> None:
    images = training_dataset(student, config.dataset, config.root, config.split, config.limit)
    on_dataset(images)
    vocabulary = vocabulary_for_dataset(student, images, config.unseen, cache_folder())
    predictor, failed = Predictor(student, vocabulary=vocabulary), set()
    if report.measured is None:
        gammas = sorted({*GRID.tolist(), config.gamma})
        found = measured(predictor, images, gammas, progress_bar, Clock())
        what = f"the first {len(images)}" if config.limit else f"all {len(images)}"
        report.measured = _measured(found, config.gamma, f"{what} images of {images.name}, split {images.split}")
        report.missing += [f"metrics of {name}: {reason}" for name, reason in found.failures.items()]
        failed = found.failures.keys()
    if config.pictures:
        indices = [index for index, name in enumerate(images.ids) if name not in failed][: config.pictures]
        report.predictions = predictions_figure(predictor, images, indices, config.gamma)


def _measured(found: Evaluation, gamma: float, source: str) -> Measured:
    split = found.vocabulary.split
    per_class = found.at(gamma).as_json(gamma, split.classes)["per_class"]
    metrics = {at: found.at(at).as_json(at) for at in found.counts}
    sweep = {at: {name: one[name] for name in Metrics.COLUMNS} for at, one in metrics.items()}
    by_training = found.by_training_labels(gamma).as_json(gamma) if found.vocabulary.transferred else None
    return Measured(source, gamma, sweep, per_class, frozenset(split.unseen), by_training)


def _origin(report: RunReport) -> Mapping[str, Any]:
    """The teacher's settings as a checkpoint has them, from the cache."""
    config = report.history.config
    with report.trying("the teacher's settings"):
        cache = Cache(Path(config.cache or ""))
        texts, masks = cache.texts(), cache.mask_attributes(cache.mask_name(config.masks))
        return {
            "dataset": cache.fingerprint["dataset"],
            "clip": cache.fingerprint["clip"],
            "masks": masks,
            "prompts": {"name": texts.name, "templates": list(texts.templates)},
            "classes": list(texts.classes),
            "unseen": masks["unseen"],
        }
    return {}


def _reproduced(folder: Path) -> Mapping[str, Any] | None:
    """What `reproduce` measured in this folder, with the paper's row; None if it was not run."""
    for file in sorted(folder.glob("*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            metrics = shares({name: result["metrics"][name] for name in (*Metrics.COLUMNS, "gamma")})
            paper, departures = shares(result["paper"]), [str(one) for one in result["departures"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        return {"dataset": file.stem, "metrics": metrics, "paper": paper, "departures": departures}
    return None
