"""One row of the paper's Table 1 or Table 2: precompute, train, evaluate with a preset, and the paper's row beside."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_cache.arrays import bytes_per_image
from data_cache.callbacks import OnDataset, ProgressBar, ignore
from data_cache.class_list import class_lists
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.layout import Layout
from data_cache.paths import cache_folder
from data_cache.system.atomic import atomic_write
from experiments.reproduce_config import ReproduceConfig, resolved
from experiments.stages import Clock, cached, measured, trained
from experiments.transfer import vocabulary_for_dataset
from pipeline.encode_job import load_clip
from pipeline.teacher.weights import RANDOM
from trainer.config import GAMMA
from trainer.evaluate import Evaluation
from trainer.memory import estimated_memory
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from trainer.students.network import StudentNetwork, check_size


@dataclass(frozen=True)
class ReproducedRow:
    """What came out, and the paper's figures."""

    config: ReproduceConfig
    found: Evaluation
    seconds: Mapping[str, float]

    @property
    def gamma(self) -> float:
        """The paper's gamma."""
        return next(iter(self.found.counts))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        columns = list(Metrics.COLUMNS)
        return {
            "metrics": self.found.as_json(),
            "paper": dict(zip(columns, (value / 100 for value in self.config.row), strict=False)),
            "departures": self.departures,
            "seconds": dict(self.seconds),
            "run": str(self.config.run),
        }

    @property
    def lines(self) -> list[str]:
        """The paper's row and ours, in per cent."""
        rows = {"paper": self.config.row, "ours": [100 * v for v in self.found.at(self.gamma).summary.values()]}
        if self.found.vocabulary.transferred:
            shares = self.found.by_training_labels(self.gamma).summary.values()
            rows["by training vocabulary"] = [100 * value for value in shares]
        title = f"{self.config.benchmark} {self.config.student_name}"
        title += f" tested on {self.config.test_on}" if self.config.test_on else ""
        lines = [f"{title:32}" + "".join(f"{name:>9}" for name in Metrics.COLUMNS.values())]
        lines += [f"{name:32}" + "".join(f"{value:9.1f}" for value in row) for name, row in rows.items() if row]
        return lines + [f"not the paper's settings: {departure}" for departure in self.departures]

    @property
    def departures(self) -> list[str]:
        """What differs from the paper's protocol, for whoever compares the rows."""
        failed = len(self.found.failures)
        return self.config.departures + ([f"{failed} test images could not be evaluated"] if failed else [])


def reproduce(config: ReproduceConfig, progress_bar: ProgressBar, on_dataset: OnDataset = ignore) -> ReproducedRow:
    """Precompute, train and evaluate; rerun to resume. Writes `run`/<dataset>.json at the end.

    Raises what precompute, train and evaluate raise.
    """
    clock, evaluation = Clock(), config.preset.evaluate
    images = _opened(config, on_dataset)
    train = config.train
    # everything that can be wrong with the student is found before CLIP runs
    check_size(StudentNetwork(train.arch, train.encoder, train.encoder_weights, channels=1), train, train.size)
    cached(config.precompute, progress_bar, clock, config.max_failures)
    student = trained(train, config.run, progress_bar, clock, train.device)
    vocabulary = vocabulary_for_dataset(student, images, None, cache_folder())
    predictor = Predictor(student, evaluation["sliding"], vocabulary)
    found = measured(predictor, images, evaluation["gamma"], progress_bar, clock)
    row = ReproducedRow(config, found, clock.seconds)
    with atomic_write(config.run / f"{images.name}.json") as draft:
        draft.write_text(json.dumps(row.as_json(), indent=2) + "\n")
    return row


def dry_run(config: ReproduceConfig, on_dataset: OnDataset = ignore) -> dict[str, Any]:
    """The plan of it: images, views, bytes, updates, and about how much GPU memory. Nothing is written or fetched.

    Memory is estimated for activations of two bytes and of four; bf16-mixed is in between. Never compared with a GPU.
    """
    stage1, train = config.precompute, config.train
    tested = _opened(config, on_dataset)
    images = open_dataset(stage1.dataset, stage1.root, stage1.split, stage1.limit)
    clip = load_clip(replace(stage1.clip_source, weights=RANDOM), "fp32", "cpu")
    layout = Layout(len(images), stage1.views, clip.channels, clip.grid, stage1.shard, stage1.dense)
    segmenter = StudentNetwork(train.arch, train.encoder, "none", clip.channels)
    size = train.size or clip.image_size
    check_size(segmenter, train, size)
    vocabulary = class_lists()[stage1.dataset]
    seen = len(vocabulary.classes) - len(vocabulary.unseen)
    parameters = sum(parameter.numel() for parameter in segmenter.parameters())
    return {
        "precompute": resolved(stage1),
        "train": {name: value for name, value in asdict(train).items() if value is not None},
        "evaluate": config.preset.evaluate | {"dataset": tested.name, "gamma": GAMMA},
        "images": len(images),
        "tested": len(tested),
        "views": layout.views,
        "cache_bytes": sum(bytes_per_image(layout, "uint8").values()) * len(images),
        "cache_exists": stage1.cache.is_dir(),
        "iterations": train.iterations,
        "parameters": parameters,
        "gpu_bytes_about": [estimated_memory(train, segmenter, size, seen, mixed) for mixed in (True, False)],
        "paper": config.row,
        "departures": config.departures,
    }


def _opened(config: ReproduceConfig, on_dataset: OnDataset) -> Dataset:
    """The images to evaluate on: missing ones should be missed at once."""
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
