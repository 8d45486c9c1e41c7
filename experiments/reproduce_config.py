"""Settings of `reproduce`: turns a row of the paper's tables into settings of precompute, train and evaluate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_cache.errors import UsageError
from data_cache.options import argument, option, same_option
from data_cache.paths import RUNS, cache_folder
from experiments.config import CheckedConfig
from experiments.presets import PRESETS, STUDENTS, Preset, paper
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
    test_on: str | None = option(None, "Evaluate on voc or context instead (a row of Table 2).")
    test_root: Path | None = option(None, "Root of the dataset of --test-on.")
    limit: int | None = same_option(PrecomputeConfig, "limit")
    max_failures: float = option(0.01, "Accepted share of failed images.", minimum=0, maximum=1)
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_on is not None and (self.benchmark != "coco" or self.test_on not in paper()["table 2"]):
            raise UsageError(
                f"--test-on {self.test_on} for {self.benchmark}: Table 2 has only students trained on coco and tested "
                f"on {' and '.join(paper()['table 2'])}; for others run `evaluate RUN --dataset NAME`"
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
        """Settings of stage 1. A limited cache has its own name, and an existing cache may contain dense tokens."""
        changed = self._changed(PrecomputeConfig)
        if self.limit is not None:
            changed = {"cache": cache_folder() / f"{self.preset.dataset}_{self.limit}.zarr"} | changed
        config = PrecomputeConfig(**self.preset.precompute(changed) | {"root": self.root, "limit": self.limit})
        if "dense" not in changed and config.cache.is_dir():
            from data_cache.reader import Cache  # imported here because Zarr takes a second

            return replace(config, dense=Cache(config.cache).layout.dense)
        return config

    @property
    def train(self) -> TrainConfig:
        """Settings of stage 2."""
        options = self.preset.train(self.student) | self._changed(TrainConfig)
        paths = {"cache": str(self.precompute.cache), "root": str(self.root.absolute()) if self.root else None}
        return TrainConfig(**(options | paths))

    @property
    def run(self) -> Path:
        """The run's folder."""
        suffix = "" if self.limit is None else f"_{self.limit}"
        return self.out or RUNS / f"{self.benchmark}_{self.student_name}{suffix}"

    @property
    def row(self) -> list[float]:
        """The paper's figures in percent."""
        table = paper()["table 2"][self.test_on] if self.test_on else paper()["table 1"][self.benchmark]
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

    def _changed(self, config: type) -> dict[str, Any]:
        names = {entry.name for entry in fields(config)}
        return {name: value for name, value in self.changed.items() if name in names}


def resolved(config: PrecomputeConfig) -> dict[str, Any]:
    """The settings of stage 1 as JSON, with default weights and prompts filled in."""
    values = asdict(config) | {"clip_weights": config.clip_source.weights, "prompts": config.prompt_set.name}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if v is not None}
