"""What a run's report tells: its history, what it gets right at every gamma, and pictures; and what could not be."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import InterruptError, UsageError, UserError
from data_cache.places import cache_folder
from data_cache.splits import vocabularies
from data_cache.store import Cache
from experiments.figures import Figure, attention_figure, predictions_figure
from experiments.history import History, read_run, run_in
from experiments.show import images_for, views_for
from experiments.stages import Clock, Progress, measured
from experiments.transfer import words_of
from trainer.checkpoint import Checkpoint, load
from trainer.evaluate import GAMMA, Evaluation, Predictor
from trainer.gamma import GRID
from trainer.metrics import Metrics

Figures = Mapping[str, float | None]
"""The four figures by the names they have in JSON, None where no class of a kind occurs."""


@dataclass(frozen=True)
class Wanted:
    """What is to be reported; names are those of the command line, None is the default."""

    run: Path
    result: Path | None = None
    dataset: str | None = None
    root: Path | None = None
    split: str = "val"
    unseen: str | None = None
    limit: int | None = None
    cache: Path | None = None
    pictures: int = 6
    gamma: float = GAMMA
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.result and self.limit:
            raise UsageError("--limit: a --result is measured already; leave one of them out")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return run_in(self.run)


@dataclass(frozen=True)
class Measured:
    """What came out.

    Args:
        source: on what, by whom.
        gamma: at which `per_class` is.
        sweep: the four figures at each gamma, ascending.
        per_class: IoU a class; None for one that does not occur.
        unseen: names of those without labels in training.
        familiar: on another dataset than the training's, the four figures with S by what had labels there.

    """

    source: str
    gamma: float
    sweep: Mapping[float, Figures]
    per_class: Mapping[str, float | None]
    unseen: frozenset[str]
    familiar: Figures | None = None


@dataclass
class Report:
    """All there is to tell; `missing` says in a line each what there is not, and why."""

    history: History
    step: int | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)
    measured: Measured | None = None
    reproduced: Mapping[str, Any] | None = None
    predictions: Figure | None = None
    attention: Figure | None = None
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def trying(self, what: str, asked: object = None) -> Iterator[None]:
        """Note what fails as missing; of what was `asked` for by an option the failure is the user's to hear."""
        try:
            yield
        except (InterruptError, UsageError):
            raise
        except UserError as error:
            if asked is not None:
                raise
            self.missing.append(f"{what}: {str(error).splitlines()[0]}")


def gather(wanted: Wanted, progress: Progress, note: Callable[[Dataset], None] = lambda _: None) -> Report:
    """Read a run's folder, evaluate its newest checkpoint if its images are found, and draw; `note` hears of them.

    Raises:
        UsageError, UserError: it is no run, or what an option asks for cannot be had.

    """
    report = Report(read_run(wanted.run))
    history = report.history
    if not history.lines:
        report.missing.append("curves: the log has no line yet")
    for folder in history.failed:
        report.missing.append(f"the training ended with a loss that was not finite; what it left is in {folder}")
    if history.unread:
        report.missing.append(f"{history.unread} line{'s'[: history.unread > 1]} of the log: torn or damaged")
    student = _student(report, wanted)
    report.origin = student.card if student else _origin(report)
    if wanted.result:
        report.measured = read_result(wanted.result, student)
    report.reproduced = _reproduced(history.folder)
    if student is None:
        return report
    report.step = student.step
    with report.trying("metrics and predictions", wanted.dataset or wanted.root):
        _evaluate(report, student, wanted, progress, note)
    with report.trying("attention", wanted.cache):
        own = wanted.dataset in (None, student.card["dataset"]["name"])
        views = views_for(student, wanted.cache, wanted.root if own else None)
        if wanted.pictures:
            report.attention = attention_figure(student, views, views.first(wanted.pictures))
    return report


def read_result(file: Path, student: Checkpoint | None) -> Measured:
    """What `evaluate --json` printed, or `reproduce` wrote. Raises UserError for anything else."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        told = told.get("metrics", told)
        at = [told, *told.get("sweep", []), *([told["picked"]] if "picked" in told else [])]
        sweep = {float(one["gamma"]): shares({name: one[name] for name in Metrics.COLUMNS}) for one in at}
        per_class, gamma = shares(told["per_class"]), float(told["gamma"])
        familiar = shares(told["by_training_vocabulary"]) if "by_training_vocabulary" in told else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--result {file}: not what `evaluate --json` prints ({type(error).__name__}: {error})"
        ) from None
    splits = [(student.split.classes, student.split.unseen)] if student else []
    splits += [(known.classes, known.unseen) for known in vocabularies().values()]
    unseen = next((hidden for classes, hidden in splits if set(classes) == set(per_class)), ())
    return Measured(f"read from {file}", gamma, dict(sorted(sweep.items())), per_class, frozenset(unseen), familiar)


def shares(figures: Mapping[str, float | None]) -> Figures:
    """The same figures, once they are known to be shares. Raises ValueError or TypeError if one is not in 0..1."""
    for name, value in figures.items():
        if name != "gamma" and value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, no share in 0..1")
    return figures


def _student(report: Report, wanted: Wanted) -> Checkpoint | None:
    history = report.history
    if not any(history.folder.glob("step_*")):
        first = min(history.config.checkpoint_every, history.config.iterations)
        report.missing.append(f"metrics and pictures: no checkpoint yet; the first is saved at update {first}")
        return None
    with report.trying("metrics and pictures"):
        return load(history.folder, resolve_device(wanted.device))
    return None


def _evaluate(
    report: Report, student: Checkpoint, wanted: Wanted, progress: Progress, note: Callable[[Dataset], None]
) -> None:
    images = images_for(student, wanted.dataset, wanted.root, wanted.split, wanted.limit)
    note(images)
    words = words_of(student, images, wanted.unseen, cache_folder())
    predictor = Predictor(student, words=words)
    if report.measured is None:
        gammas = sorted({*GRID.tolist(), wanted.gamma})
        found = measured(predictor, images, gammas, progress, Clock())
        what = f"the first {len(images)}" if wanted.limit else f"all {len(images)}"
        report.measured = _measured(found, wanted.gamma, f"{what} images of {images.name}, split {images.split}")
    if wanted.pictures:
        places = range(min(wanted.pictures, len(images)))
        report.predictions = predictions_figure(predictor, images, places, wanted.gamma)


def _measured(found: Evaluation, gamma: float, source: str) -> Measured:
    told = {at: found.at(at).as_json(at) for at in found.counts}
    split = found.words.split
    per_class = found.at(gamma).as_json(gamma, split.classes)["per_class"]
    sweep = {at: {name: one[name] for name in Metrics.COLUMNS} for at, one in told.items()}
    familiar = found.by_familiarity(gamma).as_json(gamma) if found.words.transferred else None
    return Measured(source, gamma, sweep, per_class, frozenset(split.unseen), familiar)


def _origin(report: Report) -> Mapping[str, Any]:
    """What a checkpoint would tell of the teacher, from the cache."""
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
    """What `reproduce` measured in this folder, and the paper's row, if it did."""
    for file in sorted(folder.glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            metrics = shares({name: told["metrics"][name] for name in (*Metrics.COLUMNS, "gamma")})
            paper, departures = shares(told["paper"]), [str(one) for one in told["departures"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        return {"dataset": file.stem, "metrics": metrics, "paper": paper, "departures": departures}
    return None
