"""Reproduces rows of the paper's Table 1 or 2: precompute, train and evaluate with a preset."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, OnWarnings, ProgressBar, ignore
from data_cache.class_list import open_vocabularies
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.limits import read_json
from data_cache.paths import cache_folder
from data_cache.system.atomic import atomic_write
from experiments.open_vocabulary import comparison, methods
from experiments.presets import READINGS
from experiments.reproduce_config import ReproduceConfig
from experiments.stages import StageTimer, evaluate_stage, precompute_stage, train_stage
from experiments.transfer import vocabulary_for_dataset
from trainer.config import GAMMA
from trainer.evaluate import Evaluation
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from trainer.students.network import StudentNetwork, check_size


@dataclass(frozen=True)
class ReproducedRow:
    """Our row and the paper's, tested on a dataset."""

    config: ReproduceConfig
    dataset: str
    evaluation: Evaluation
    seconds: Mapping[str, float]

    @property
    def gamma(self) -> float:
        """The gamma of the figures: the paper's, or 0 for a transductive row."""
        return next(iter(self.evaluation.counts))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "metrics": self.evaluation.as_json(),
            "paper": paper_row(self.config, self.dataset),
            **({"published": self.published} if self.published else {}),
            "departures": self.departures,
            "logits": self.config.logits,
            "other_reading": self.other_reading,
            "seconds": dict(self.seconds),
            "run": str(self.config.run),
        }

    @property
    def other_reading(self) -> dict[str, float]:
        """Our row with the other reading of eq. 9, if it has been run with otherwise the same settings; else empty."""
        other = self.config.other_reading
        try:
            row = read_json(row_file(other, self.dataset))
            same = row["logits"] == other.logits and row["departures"] == other.departures
            return {name: float(row["metrics"][name]) for name in Metrics.COLUMNS} if same else {}
        except (OSError, ValueError, KeyError, TypeError):  # not run, or not a row
            return {}

    @property
    def file(self) -> Path:
        """The file that has the row as JSON, in the folder of the run."""
        return row_file(self.config, self.dataset)

    @property
    def published(self) -> dict[str, float]:
        """The mIoU of other open-vocabulary methods by name, as shares; empty if there are none."""
        figures = {name: method.figures.get(self.dataset) for name, method in methods().items()}
        return {name: figure / 100 for name, figure in figures.items() if figure is not None}

    @property
    def lines(self) -> list[str]:
        """The paper's row and ours, in percent, with both readings of eq. 9 if both have been run."""
        other, found = self.config.other_reading, self.other_reading
        rows = {
            "paper": self.config.row(self.dataset),
            f"ours, logits {self.config.logits}": _percent(self.evaluation.at(self.gamma).summary),
        }
        rows |= {f"ours, logits {other.logits}": _percent(found)} if found else {}
        if self.evaluation.vocabulary.transferred:
            rows["by training vocabulary"] = _percent(self.evaluation.by_training_labels(self.gamma).summary)
        return table(self.config, self.dataset, rows)

    @property
    def departures(self) -> list[str]:
        """Differences from the paper's protocol, one per item."""
        failed = len(self.evaluation.failures)
        return self.config.departures + ([f"{failed} test images could not be evaluated"] if failed else [])


def row_file(config: ReproduceConfig, test: str) -> Path:
    """The file in which a row is saved as JSON."""
    return config.run / f"{test}.json"


@dataclass(frozen=True)
class Reproduction:
    """A row for each dataset that the student was tested on."""

    rows: tuple[ReproducedRow, ...]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the row, or several by dataset."""
        if len(self.rows) == 1:
            return self.rows[0].as_json()
        return {"tests": {row.dataset: row.as_json() for row in self.rows}}

    @property
    def lines(self) -> list[str]:
        """The rows of the paper and ours, a table of the open vocabularies, and where they are saved."""
        compared = {
            row.dataset: row.evaluation.at(row.gamma) for row in self.rows if row.dataset in open_vocabularies()
        }
        lines = [line for row in self.rows if row.dataset not in compared for line in row.lines]
        config, gamma = self.rows[0].config, self.rows[0].gamma
        if compared:
            lines += comparison(compared, f"{config.student_name}, {config.logits}")
        departures = dict.fromkeys(departure for row in self.rows for departure in row.departures)
        lines += [f"not the paper's settings: {departure}" for departure in departures]
        if not all(row.other_reading for row in self.rows):
            other = config.other_reading.logits
            lines.append(f"the other reading of eq. 9, {READINGS[other]}: pass --logits {other}")
        paper = " is the paper's" if gamma == GAMMA else f" was added; the paper's is {GAMMA:g}"
        lines.append(f"gamma {gamma:g}{paper}; which is best depends on the student: see `evaluate --pick-gamma`")
        return [*lines, *(f"saved as {row.file}" for row in self.rows)]


def paper_row(config: ReproduceConfig, test: str) -> dict[str, float]:
    """The paper's figures on a dataset by metric, as shares; empty if it has none."""
    return dict(zip(Metrics.COLUMNS, (value / 100 for value in config.row(test)), strict=False))


def table(config: ReproduceConfig, test: str, rows: Mapping[str, Sequence[float]]) -> list[str]:
    """Rows of metrics in percent by name, under a title and the names of the columns; empty rows are left out."""
    title = f"{config.benchmark} {config.student_name}"
    title += f" tested on {test}" if config.test_on else ""
    lines = [f"{title:32}" + "".join(f"{name:>9}" for name in Metrics.COLUMNS.values())]
    return lines + [f"{name:32}" + "".join(f"{value:9.1f}" for value in row) for name, row in rows.items() if row]


def reproduce(
    config: ReproduceConfig,
    progress_bar: ProgressBar,
    on_dataset: OnDataset = ignore,
    on_warnings: OnWarnings = ignore,
) -> Reproduction:
    """Precompute, train and evaluate, and write each row to `run`/<dataset>.json. Rerun to resume.

    `on_warnings` receives what is wrong with the class names before images are encoded or evaluated.

    Raises as precompute, train and evaluate do.
    """
    timer, options = StageTimer(), config.preset.evaluate
    tests = _open_test_images(config, on_dataset)
    train = config.train
    # create the student once so that invalid settings are reported before CLIP runs
    check_size(StudentNetwork(train.arch, train.encoder, train.encoder_weights, channels=1), train, train.size)
    precompute_stage(config.precompute, progress_bar, timer, config.max_failures, on_warnings)
    checkpoint = train_stage(train, config.run, progress_bar, timer, train.device)
    rows = []
    for name, images in tests.items():
        vocabulary = vocabulary_for_dataset(checkpoint, images, None, cache_folder())
        if config.test_on:  # the training classes were checked before stage 1
            on_warnings(vocabulary.problems)
        predictor = Predictor(checkpoint, options["sliding"], vocabulary)
        evaluation = evaluate_stage(predictor, images, (train.gamma,), progress_bar, timer)
        rows.append(ReproducedRow(config, name, evaluation, dict(timer.seconds)))
        with atomic_write(rows[-1].file) as draft:
            draft.write_text(json.dumps(rows[-1].as_json(), indent=2) + "\n")
    return Reproduction(tuple(rows))


def _percent(summary: Mapping[str, float]) -> list[float]:
    return [100 * value for value in summary.values()]


def _open_test_images(config: ReproduceConfig, on_dataset: OnDataset) -> dict[str, Dataset]:
    """Open the training images, so that missing ones are reported at once, and return the test images by dataset."""
    stage1, split = config.precompute, config.preset.evaluate["split"]
    on_dataset(open_dataset(stage1.dataset, stage1.root, stage1.split))
    tests = {}
    for name in config.tests:
        try:
            tests[name] = open_dataset(name, config.root_of(name), split, config.limit)
        except UserError as error:
            if config.test_on is None:
                raise
            raise type(error)(*(str(line).replace("--root", "--test-root") for line in error.args)) from None
        on_dataset(tests[name])
    return tests
