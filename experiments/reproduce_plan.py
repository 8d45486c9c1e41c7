"""The plan of `reproduce --dry-run`: what a row of the paper's tables takes, with or without the data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_cache.arrays import bytes_per_image
from data_cache.callbacks import OnDataset, ignore
from data_cache.class_list import class_lists
from data_cache.datasets import DATASETS, open_dataset
from data_cache.errors import UsageError, UserError
from data_cache.layout import Layout
from data_cache.messages import count
from experiments.presets import READINGS
from experiments.reproduce import paper_row, table
from experiments.reproduce_config import ReproduceConfig, resolved
from pipeline.encode_job import load_clip
from pipeline.teacher.weights import RANDOM
from trainer.memory import estimated_memory
from trainer.students.network import StudentNetwork, check_size


@dataclass(frozen=True)
class ReproducePlan:
    """What a row takes.

    Args:
        config: the row.
        images: number of training images.
        tests: number of test images by dataset.
        missing: on datasets that are not here: that the published numbers of images are used, and where to get them.
        cache_bytes: size of the cache.
        parameters: of the student.
        memory: bytes of GPU memory for activations of two and of four bytes (bf16-mixed is in between). This estimate
            has not been compared with a measurement.

    """

    config: ReproduceConfig
    images: int
    tests: Mapping[str, int]
    missing: tuple[str, ...]
    cache_bytes: int
    parameters: int
    memory: tuple[int, int]

    @property
    def tested(self) -> int:
        """Number of test images."""
        return sum(self.tests.values())

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        stage1, train = self.config.precompute, self.config.train
        return {
            "precompute": resolved(stage1),
            "train": {name: value for name, value in asdict(train).items() if value is not None},
            "evaluate": self.config.preset.evaluate | {"dataset": ",".join(self.tests), "gamma": train.gamma},
            "images": self.images,
            "tested": self.tested,
            "missing": list(self.missing),
            "views": stage1.views,
            "cache_bytes": self.cache_bytes,
            "cache_exists": stage1.cache.is_dir(),
            "iterations": train.iterations,
            "parameters": self.parameters,
            "gpu_bytes_about": list(self.memory),
            "paper": paper_row(self.config, next(iter(self.tests))),
            "departures": self.config.departures,
            "runs": {config.logits: str(config.run) for config in (self.config, self.config.other_reading)},
        }

    @property
    def lines(self) -> list[str]:
        """The plan in units that people read, and the paper's row."""
        stage1, train = self.config.precompute, self.config.train
        clip, exists = stage1.clip_source, " (exists; what it has is kept)" if stage1.cache.is_dir() else ""
        other = self.config.other_reading
        tests = ", ".join(f"{count:,} of {name}" for name, count in self.tests.items())
        low, high = (size / 2**30 for size in self.memory)
        plan = {
            "images": f"{self.images:,} to train on, {tests} to test on",
            "teacher": f"{clip.name} ({clip.weights}) at {stage1.image_size or 'its own'} px, {stage1.views} views per "
            f"image: {self.images * stage1.views:,} views to encode",
            "cache": f"{self.cache_bytes / 2**30:.2f} GiB in {stage1.cache}{exists}",
            "student": f"{train.arch} with {train.encoder} ({train.encoder_weights}), {self.parameters / 1e6:.1f} "
            "million parameters",
            "logits": f"{train.logits}: eq. 9 as {READINGS[train.logits]}; {other.logits} ({READINGS[other.logits]}) "
            f"is another run: --logits {other.logits}, in {other.run}",
            "training": f"{count(train.iterations, 'update')} of {count(train.batch_size, 'image')}, "
            f"{train.iterations * train.batch_size / self.images:.1f} epochs, in {self.config.run}",
            "GPU memory": f"{low:.1f} to {high:.1f} GiB, estimated",
        }
        lines = [f"{name:12}{value}" for name, value in plan.items()]
        for name in self.tests:
            if row := self.config.row(name):
                lines += ["", *table(self.config, name, {"paper": row})]
        lines += [f"not the paper's settings: {departure}" for departure in self.config.departures]
        return lines + [f"note: {sentence}" for sentence in self.missing]


def dry_run(config: ReproduceConfig, on_dataset: OnDataset = ignore) -> ReproducePlan:
    """Plan a row. Nothing is written or downloaded, and the data need not be there.

    Raises UsageError for settings that do not fit, and UserError for a given root that does not hold the data.
    """
    stage1, train, split = config.precompute, config.train, config.preset.evaluate["split"]
    images, missing = _count(stage1.dataset, stage1.root, stage1.split, stage1.limit, on_dataset)
    option, tests = "--test-root" if config.test_on else "--root", {}
    for name in config.tests:
        tests[name], absent = _count(name, config.root_of(name), split, config.limit, on_dataset, option)
        missing = [*missing, *absent]
    clip = load_clip(replace(stage1.clip_source, weights=RANDOM), "fp32", "cpu")
    layout = Layout(images, stage1.views, clip.channels, clip.grid, stage1.shard_on("cpu"), stage1.dense)
    network = StudentNetwork(train.arch, train.encoder, "none", clip.channels)
    size = train.size or clip.image_size
    check_size(network, train, size)
    class_list = class_lists()[stage1.dataset]
    seen = len(class_list.classes) - len(class_list.unseen)
    return ReproducePlan(
        config,
        images,
        tests,
        tuple(dict.fromkeys(missing)),
        sum(bytes_per_image(layout, "uint8").values()) * images,
        sum(parameter.numel() for parameter in network.parameters()),
        (estimated_memory(train, network, size, seen, True), estimated_memory(train, network, size, seen, False)),
    )


def _count(
    name: str, root: Path | None, split: str, limit: int | None, on_dataset: OnDataset, option: str = "--root"
) -> tuple[int, list[str]]:
    """The number of images of a split, as published if they are not here, and then sentences on what is missing."""
    try:
        images = open_dataset(name, root, split, limit)
    except UsageError:
        raise
    except UserError as error:
        if root is not None:  # probably a typing error
            raise type(error)(*(str(line).replace("--root", option) for line in error.args)) from None
        spec = DATASETS[name]
        count = spec.sizes[split][0]
        sentences = [
            f"{name} is not here: its numbers of images are the published ones",
            f"{name} is published as {spec.source}",
            f"{option} must be the folder with {spec.layout}",
        ]
        return min(count, limit or count), sentences
    on_dataset(images)
    return len(images), []
