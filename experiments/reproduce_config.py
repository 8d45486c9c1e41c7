"""Settings of `reproduce`: turns a row of the paper's tables into settings of precompute, train and evaluate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_cache.datasets import DATASETS
from data_cache.errors import UsageError
from data_cache.options import argument, option, same_option
from data_cache.paths import RUNS, cache_folder
from experiments.config import CheckedConfig
from experiments.open_vocabulary import compared_datasets
from experiments.presets import PRESETS, READINGS, STUDENTS, Preset, paper
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig

NEUTRAL = {
    "cache",
    "root",
    "device",
    "workers",
    "log",
    "log_every",
    "log_images",
    "checkpoint_every",
    "seed",
    "limit",
    "shard",
    "kmeans",
}
"""Settings that may differ from the paper's without being a departure."""


@dataclass(frozen=True)
class ReproduceConfig(CheckedConfig):
    """Settings of `reproduce`. `changed` has the options of `precompute` and `train` that override the preset."""

    benchmark: str = argument("The benchmark (name of a preset).", PRESETS)
    student: str | None = option(None, "One of the paper's students; the preset's by default.", choices=STUDENTS)
    root: Path | None = same_option(PrecomputeConfig, "root")
    out: Path | None = option(None, "Folder of the run and its result; runs/<preset>_<student> by default.")
    test_on: str | None = option(
        None,
        "Evaluate on other datasets instead: voc or context (Table 2), or ade150, context459, context59 or voc20 (open "
        "vocabulary), separated by commas.",
        metavar="NAME,...",
    )
    test_root: Path | None = option(
        None, "Root of the dataset of --test-on; of several datasets, the folder that contains their folders."
    )
    limit: int | None = same_option(PrecomputeConfig, "limit")
    max_failures: float = option(0.01, "Accepted share of failed images.", minimum=0, maximum=1)
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        known = test_datasets()
        if self.test_on is not None and (self.benchmark != "coco" or not {*self.tests} <= {*known}):
            raise UsageError(
                f"--test-on {self.test_on} for {self.benchmark}: the tables have only students trained on coco and "
                f"tested on {', '.join(known)}; for others run `evaluate RUN --dataset NAME`"
            )
        if self.test_on is None and self.test_root is not None:
            raise UsageError(f"--test-root {self.test_root}: pass --test-on, the dataset it belongs to")

    @property
    def preset(self) -> Preset:
        """The paper's settings."""
        return PRESETS[self.benchmark]

    @property
    def student_name(self) -> str:
        """The student's name."""
        return self.student or self.preset.student

    @property
    def precompute(self) -> PrecomputeConfig:
        """Settings of stage 1. A limited cache has its own name, and an existing cache may contain dense tokens.

        Transductive training needs them: a new cache then holds them in 8 bits, and UsageError is raised if an existing
        one holds none.
        """
        changed = self._changed(PrecomputeConfig)
        if self.limit is not None:
            changed = {"cache": cache_folder() / f"{self.preset.dataset}_{self.limit}.zarr"} | changed
        config = PrecomputeConfig(**self.preset.precompute(changed) | {"root": self.root, "limit": self.limit})
        transductive = self.changed.get("transductive")
        if "dense" not in changed and config.cache.is_dir():
            from data_cache.reader import Cache  # imported here because Zarr takes a second

            config = replace(config, dense=Cache(config.cache).layout.dense)
        elif "dense" not in changed and transductive:
            config = replace(config, dense="int8")
        if transductive and config.dense == "none":
            fix = "omit --dense none" if "dense" in changed else "pass another --cache; a new one holds them in 8 bits"
            raise UsageError(f"--transductive: needs dense tokens, and {config.cache} holds none; {fix}")
        return config

    @property
    def train(self) -> TrainConfig:
        """Settings of stage 2."""
        options = self.preset.train(self.student) | self._changed(TrainConfig)
        paths = {"cache": str(self.precompute.cache), "root": str(self.root.absolute()) if self.root else None}
        return TrainConfig(**(options | paths))

    @property
    def logits(self) -> str:
        """The reading of eq. 9."""
        return self.changed.get("logits", self._preset_logits)

    @property
    def other_reading(self) -> "ReproduceConfig":
        """The same row with the other reading of eq. 9."""
        other = next(reading for reading in READINGS if reading != self.logits)
        return replace(self, changed={**self.changed, "logits": other})

    @property
    def run(self) -> Path:
        """The run's folder, unless --out names one for both readings of eq. 9."""
        suffix = "" if self.logits == self._preset_logits else f"_{self.logits}"
        suffix += "_transductive" if self.changed.get("transductive") else ""
        suffix += "" if self.limit is None else f"_{self.limit}"
        return self.out or RUNS / f"{self.benchmark}_{self.student_name}{suffix}"

    @property
    def tests(self) -> tuple[str, ...]:
        """Names of the datasets to test on."""
        if self.test_on is None:
            return (self.preset.dataset,)
        return tuple(dict.fromkeys(name.strip() for name in self.test_on.split(",")))

    def root_of(self, test: str) -> Path | None:
        """The root of a dataset to test on, if it is given."""
        if self.test_on is None:
            return self.root
        if self.test_root is None or len(self.tests) == 1:
            return self.test_root
        return self.test_root / (DATASETS[test].folder or test)

    def row(self, test: str) -> list[float]:
        """The paper's figures in percent for a dataset to test on; empty if it has none."""
        table = paper()["table 2"].get(test, {}) if self.test_on else paper()["table 1"][self.benchmark]
        return table.get(self.student_name, [])

    @property
    def departures(self) -> list[str]:
        """Differences from the preset, one per item."""
        preset = replace(self, changed={}, limit=None)
        pairs = [(resolved(self.precompute), resolved(preset.precompute)), (asdict(self.train), asdict(preset.train))]
        differences = [
            f"{name}={ours.get(name)} instead of {theirs.get(name)}"
            for ours, theirs in pairs
            for name in sorted((ours.keys() | theirs.keys()) - NEUTRAL - {"dense"})
            if ours.get(name) != theirs.get(name)
        ]
        return differences + ([] if self.limit is None else [f"only the first {self.limit} images"])

    @property
    def _preset_logits(self) -> str:
        return self.preset.train(self.student)["logits"]

    def _changed(self, config: type) -> dict[str, Any]:
        names = {entry.name for entry in fields(config)}
        return {name: value for name, value in self.changed.items() if name in names}


def test_datasets() -> tuple[str, ...]:
    """The datasets of `--test-on`."""
    return (*paper()["table 2"], *compared_datasets())


def resolved(config: PrecomputeConfig) -> dict[str, Any]:
    """The settings of stage 1 as JSON, with default weights and prompts filled in."""
    values = asdict(config) | {"clip_weights": config.clip_source.weights, "prompts": config.prompt_set.name}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if v is not None}
