"""Reproduces one row of the paper's Table 1 or 2: precompute, train and evaluate with a preset."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, OnWarnings, ProgressBar, ignore
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.paths import cache_folder
from data_cache.system.atomic import atomic_write
from experiments.reproduce_config import ReproduceConfig
from experiments.stages import StageTimer, evaluate_stage, precompute_stage, train_stage
from experiments.transfer import vocabulary_for_dataset
from trainer.evaluate import Evaluation
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from trainer.students.network import StudentNetwork, check_size


@dataclass(frozen=True)
class ReproducedRow:
    """Our row and the paper's."""

    config: ReproduceConfig
    evaluation: Evaluation
    seconds: Mapping[str, float]

    @property
    def gamma(self) -> float:
        """The paper's gamma."""
        return next(iter(self.evaluation.counts))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "metrics": self.evaluation.as_json(),
            "paper": paper_row(self.config),
            "departures": self.departures,
            "seconds": dict(self.seconds),
            "run": str(self.config.run),
        }

    @property
    def file(self) -> Path:
        """The file that has the row as JSON, in the folder of the run."""
        return self.config.run / f"{self.config.test_on or self.config.preset.dataset}.json"

    @property
    def lines(self) -> list[str]:
        """The paper's row and ours, in percent, and where they are saved."""
        rows = {"paper": self.config.row, "ours": _percent(self.evaluation.at(self.gamma))}
        if self.evaluation.vocabulary.transferred:
            rows["by training vocabulary"] = _percent(self.evaluation.by_training_labels(self.gamma))
        lines = table(self.config, rows)
        lines += [f"not the paper's settings: {departure}" for departure in self.departures]
        return [*lines, f"saved as {self.file}"]

    @property
    def departures(self) -> list[str]:
        """Differences from the paper's protocol, one per item."""
        failed = len(self.evaluation.failures)
        return self.config.departures + ([f"{failed} test images could not be evaluated"] if failed else [])


def paper_row(config: ReproduceConfig) -> dict[str, float]:
    """The paper's figures by metric, as shares; empty if it has none."""
    return dict(zip(Metrics.COLUMNS, (value / 100 for value in config.row), strict=False))


def table(config: ReproduceConfig, rows: Mapping[str, Sequence[float]]) -> list[str]:
    """Rows of metrics in percent by name, under a title and the names of the columns; empty rows are left out."""
    title = f"{config.benchmark} {config.student_name}"
    title += f" tested on {config.test_on}" if config.test_on else ""
    lines = [f"{title:32}" + "".join(f"{name:>9}" for name in Metrics.COLUMNS.values())]
    return lines + [f"{name:32}" + "".join(f"{value:9.1f}" for value in row) for name, row in rows.items() if row]


def reproduce(
    config: ReproduceConfig,
    progress_bar: ProgressBar,
    on_dataset: OnDataset = ignore,
    on_warnings: OnWarnings = ignore,
) -> ReproducedRow:
    """Precompute, train and evaluate, and write the row to `run`/<dataset>.json. Rerun to resume.

    `on_warnings` receives what is wrong with the class names before images are encoded or evaluated.

    Raises as precompute, train and evaluate do.
    """
    timer, options = StageTimer(), config.preset.evaluate
    images = _open_test_images(config, on_dataset)
    train = config.train
    # create the student once so that invalid settings are reported before CLIP runs
    check_size(StudentNetwork(train.arch, train.encoder, train.encoder_weights, channels=1), train, train.size)
    precompute_stage(config.precompute, progress_bar, timer, config.max_failures, on_warnings)
    checkpoint = train_stage(train, config.run, progress_bar, timer, train.device)
    vocabulary = vocabulary_for_dataset(checkpoint, images, None, cache_folder())
    if config.test_on:  # the training classes were checked before stage 1
        on_warnings(vocabulary.problems)
    predictor = Predictor(checkpoint, options["sliding"], vocabulary)
    evaluation = evaluate_stage(predictor, images, options["gamma"], progress_bar, timer)
    row = ReproducedRow(config, evaluation, timer.seconds)
    with atomic_write(row.file) as draft:
        draft.write_text(json.dumps(row.as_json(), indent=2) + "\n")
    return row


def _percent(metrics: Metrics) -> list[float]:
    return [100 * value for value in metrics.summary.values()]


def _open_test_images(config: ReproduceConfig, on_dataset: OnDataset) -> Dataset:
    """Open the training images, so that missing ones are reported at once, and return the test images."""
    stage1, split = config.precompute, config.preset.evaluate["split"]
    on_dataset(open_dataset(stage1.dataset, stage1.root, stage1.split))
    if config.test_on is None:
        images = open_dataset(stage1.dataset, config.root, split, config.limit)
    else:
        try:
            images = open_dataset(config.test_on, config.test_root, split, config.limit)
        except UserError as error:
            raise type(error)(*(str(line).replace("--root", "--test-root") for line in error.args)) from None
    on_dataset(images)
    return images
