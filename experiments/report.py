"""The content of a run's report: history, metrics at every gamma, figures, and a list of what is missing."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, ProgressBar, ignore
from data_cache.errors import InterruptError, UsageError, UserError
from data_cache.messages import count
from data_cache.paths import cache_folder
from data_cache.reader import Cache
from data_cache.system.devices import resolve_device
from data_cache.system.files import read_errors
from experiments.config import ReportConfig
from experiments.figures import attention_figure, predictions_figure
from experiments.history import History, read_run
from experiments.show import training_cache, training_dataset
from experiments.stages import StageTimer, evaluate_stage
from experiments.transfer import vocabulary_for_dataset
from trainer.checkpoint import Checkpoint, load
from trainer.checkpoint_folders import checkpoints
from trainer.evaluate import GRID, Evaluation
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from viewer.figure import Figure

MetricValues = Mapping[str, float | None]
"""mIoU, pAcc, mIoU_S, mIoU_U and hIoU by name; None if no such class occurs."""


@dataclass(frozen=True)
class Measured:
    """The metrics of a run.

    Args:
        source: the images that were evaluated, or the file that was read.
        gamma: the gamma of `per_class`.
        sweep: the metrics at each gamma, ascending.
        per_class: IoU per class; None for a class that does not occur.
        unseen: names of the unseen classes.
        by_training_vocabulary: the metrics with S as the classes that had labels in training, if the dataset has
            other classes than the training.

    """

    source: str
    gamma: float
    sweep: Mapping[float, MetricValues]
    per_class: Mapping[str, float | None]
    unseen: frozenset[str]
    by_training_vocabulary: MetricValues | None = None


@dataclass
class RunReport:
    """What the page shows. `missing` has one line per missing part, with the reason."""

    history: History
    step: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    reproduced: list[Mapping[str, Any]] = field(default_factory=list)
    predictions: Figure | None = None
    attention: Figure | None = None
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, part: str, requested: object = None) -> Iterator[None]:
        """Record a part that fails as missing; raise the error instead if an option `requested` the part."""
        try:
            yield
        except (InterruptError, UsageError):
            raise
        except UserError as error:
            if requested is not None:
                raise
            self.missing.append(f"{part}: {error.args[0]}")


def build_report(config: ReportConfig, progress_bar: ProgressBar, on_dataset: OnDataset = ignore) -> RunReport:
    """Read a run's folder, evaluate its newest checkpoint if the images are available, and draw figures.

    Raises UsageError or UserError if it is not a run, or something that an option requests is not available.
    """
    report = RunReport(read_run(config.run))
    history = report.history
    if not history.lines:
        report.missing.append("curves: the log is empty so far")
    for folder in history.failed:
        report.missing.append(f"the training ended with a loss that was not finite; its last state is in {folder}")
    report.missing += history.damage
    checkpoint = _load_checkpoint(report, config)
    report.origin = checkpoint.card if checkpoint else _origin_from_cache(report)
    if config.result:
        report.measured = read_result(config.result)
    report.reproduced = _read_reproduced_rows(history.folder)
    if checkpoint is None:
        return report
    report.step = checkpoint.step
    with report.trying("metrics and predictions", config.dataset or config.root):
        _evaluate(report, checkpoint, config, progress_bar, on_dataset)
    with report.trying("attention", config.cache):
        same_dataset = config.dataset in (None, checkpoint.card["dataset"]["name"])
        cache = training_cache(checkpoint, config.cache, config.root if same_dataset else None)
        if config.pictures:
            views = [cache[index] for index in cache.first_ok(config.pictures)]
            report.attention = attention_figure(checkpoint, views)
    return report


def read_result(file: Path) -> Measured:
    """Read the output of `evaluate --json` or `reproduce`. Raises UserError for any other file."""
    try:
        with read_errors(file):
            result = json.loads(file.read_text(encoding="utf-8"))
        result = result.get("metrics", result)
        rows = [result, *result.get("sweep", []), *([result["picked"]] if "picked" in result else [])]
        sweep = {float(row["gamma"]): checked({name: row[name] for name in Metrics.ALL_COLUMNS}) for row in rows}
        per_class, gamma = checked(result["per_class"]), float(result["gamma"])
        by_training = checked(result["by_training_vocabulary"]) if "by_training_vocabulary" in result else None
        unseen = frozenset(map(str, result["unseen"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--result {file}: not what `evaluate --json` prints ({type(error).__name__}: {error})"
        ) from None
    return Measured(f"read from {file}", gamma, dict(sorted(sweep.items())), per_class, unseen, by_training)


def checked(values: Mapping[str, float | None]) -> MetricValues:
    """Return the values. Raises ValueError or TypeError if one is not in 0..1."""
    for name, value in values.items():
        if name != "gamma" and value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, not in 0..1")
    return values


def _load_checkpoint(report: RunReport, config: ReportConfig) -> Checkpoint | None:
    history = report.history
    if not checkpoints(history.folder):
        first = min(history.config.checkpoint_every, history.config.iterations)
        report.missing.append(f"metrics and pictures: no checkpoint yet; the first will be saved at update {first}")
        return None
    with report.trying("metrics and pictures"):
        return load(history.folder, resolve_device(config.device))
    return None


def _evaluate(
    report: RunReport, checkpoint: Checkpoint, config: ReportConfig, progress_bar: ProgressBar, on_dataset: OnDataset
) -> None:
    images = training_dataset(checkpoint, config.dataset, config.root, config.split, config.limit)
    on_dataset(images)
    vocabulary = vocabulary_for_dataset(checkpoint, images, config.unseen, cache_folder())
    predictor, gamma, failed = Predictor(checkpoint, vocabulary=vocabulary), checkpoint.gamma(config.gamma), set()
    if report.measured is None:
        gammas = sorted({*GRID.tolist(), gamma})
        evaluation = evaluate_stage(predictor, images, gammas, progress_bar, StageTimer())
        number = count(len(images), "image")
        part = f"{number} from the start of" if config.limit else f"all {number} of"
        source = f"{part} {images.name}, split {images.split}"
        report.measured = _measured(evaluation, gamma, source)
        report.missing += [f"metrics of {name}: {reason}" for name, reason in evaluation.failures.items()]
        failed = evaluation.failures.keys()
    if config.pictures:
        indices = [index for index, name in enumerate(images.ids) if name not in failed][: config.pictures]
        report.predictions = predictions_figure(predictor, images, indices, gamma)


def _measured(evaluation: Evaluation, gamma: float, source: str) -> Measured:
    vocabulary = evaluation.vocabulary
    per_class = evaluation.at(gamma).as_json(gamma, vocabulary.split.classes)["per_class"]
    sweep = {}
    for added in evaluation.counts:
        metrics = evaluation.at(added).as_json(added)
        sweep[added] = {name: metrics[name] for name in Metrics.ALL_COLUMNS}
    by_training = evaluation.by_training_labels(gamma).as_json(gamma) if vocabulary.transferred else None
    return Measured(source, gamma, sweep, per_class, frozenset(vocabulary.split.unseen), by_training)


def _origin_from_cache(report: RunReport) -> Mapping[str, Any]:
    """The teacher's settings in the format of a checkpoint's card."""
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


def _read_reproduced_rows(folder: Path) -> list[Mapping[str, Any]]:
    """The rows that `reproduce` wrote into this folder, one per dataset, with the paper's."""
    rows = []
    for file in sorted(folder.glob("*.json")):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            metrics = checked({name: result["metrics"][name] for name in (*Metrics.ALL_COLUMNS, "gamma")})
            paper, departures = checked(result["paper"]), [str(line) for line in result["departures"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        rows.append({"dataset": file.stem, "metrics": metrics, "paper": paper, "departures": departures})
    return rows
