"""The settings of `reproduce`: a row of the paper's tables as the settings of precompute, train and evaluate."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_cache.errors import UsageError
from data_cache.options import argument, check_options, option, same_option
from data_cache.paths import cache_folder
from experiments.presets import PRESETS, STUDENTS, Preset, paper
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig

PLACES = {"cache", "root", "device", "workers", "log_every", "checkpoint_every", "seed", "limit", "shard", "kmeans"}
"""Settings that do not make a run another one than the paper's."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Settings of `reproduce`; `changed` are options of `precompute` and `train` that replace the preset's."""

    benchmark: str = argument("The benchmark, that is the preset.", PRESETS)
    student: str | None = option(
        None, "Architecture and encoder of the paper; the preset's by default.", choices=STUDENTS
    )
    root: Path | None = same_option(PrecomputeConfig, "root")
    out: Path | None = option(None, "Folder of the run and its result; runs/<preset>_<student> by default.")
    test_on: str | None = option(None, "Evaluate on voc or context instead: a row of Table 2.")
    test_root: Path | None = option(None, "Root of the dataset of --test-on.")
    limit: int | None = same_option(PrecomputeConfig, "limit")
    max_failures: float = option(0.01, "Share of failed images that still counts as success.")
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        if self.test_on is not None and (self.benchmark != "coco" or self.test_on not in paper()["table 2"]):
            raise UsageError(
                f"--test-on {self.test_on} of {self.benchmark}: Table 2 has students trained on coco and tested on "
                f"{' and '.join(paper()['table 2'])}; others by `evaluate RUN --dataset NAME`"
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
        """Stage 1. A limited cache does not take the place of the whole one; one with dense tokens is welcome."""
        changed = self._changed(PrecomputeConfig)
        if self.limit is not None:
            changed = {"cache": cache_folder() / f"{self.preset.dataset}_{self.limit}.zarr"} | changed
        config = PrecomputeConfig(**self.preset.precompute(changed) | {"root": self.root, "limit": self.limit})
        if "dense" not in changed and config.cache.is_dir():
            from data_cache.reader import Cache  # Zarr takes a second to import

            return replace(config, dense=Cache(config.cache).layout.dense)
        return config

    @property
    def train(self) -> TrainConfig:
        """Stage 2."""
        given = self.preset.train(self.student) | self._changed(TrainConfig)
        places = {"cache": str(self.precompute.cache), "root": str(self.root.absolute()) if self.root else None}
        return TrainConfig(**(given | places))

    @property
    def run(self) -> Path:
        """The run's folder."""
        suffix = "" if self.limit is None else f"_{self.limit}"
        return self.out or Path("runs") / f"{self.benchmark}_{self.student_name}{suffix}"

    @property
    def row(self) -> list[float]:
        """The paper's figures in per cent."""
        table = paper()["table 2"][self.test_on] if self.test_on else paper()["table 1"][self.benchmark]
        return table.get(self.student_name, [])

    @property
    def departures(self) -> list[str]:
        """What differs from the preset, for whoever compares the rows."""
        plain = replace(self, changed={}, limit=None)
        pairs = [(resolved(self.precompute), resolved(plain.precompute)), (asdict(self.train), asdict(plain.train))]
        differences = [
            f"{name}={ours.get(name)} instead of {theirs.get(name)}"
            for ours, theirs in pairs
            for name in sorted((ours.keys() | theirs.keys()) - PLACES - {"dense"})
            if ours.get(name) != theirs.get(name)
        ]
        return differences + ([] if self.limit is None else [f"only the first {self.limit} images"])

    def _changed(self, kind: type) -> dict[str, Any]:
        known = {entry.name for entry in fields(kind)}
        return {name: value for name, value in self.changed.items() if name in known}


def resolved(config: PrecomputeConfig) -> dict[str, Any]:
    """The settings of stage 1 as JSON, with the defaults of weights and prompts in place."""
    values = asdict(config) | {"clip_weights": config.clip_source.weights, "prompts": config.prompt_set.name}
    return {name: str(v) if isinstance(v, Path) else v for name, v in values.items() if v is not None}
