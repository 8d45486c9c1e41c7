"""One row of the paper's Table 1 or Table 2: precompute, train, evaluate with a preset, and the paper's row beside."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError
from data_cache.places import cache_folder
from data_cache.schema import Layout
from data_cache.splits import vocabularies
from data_cache.store import Cache
from experiments.presets import paper, preset_named, settings_from
from experiments.stages import Clock, Progress, cached, measured, trained
from experiments.transfer import words_of
from pipeline.precompute import Settings, load_clip
from pipeline.weights import RANDOM
from trainer.config import TrainConfig
from trainer.evaluate import Evaluation, Predictor
from trainer.memory import estimated_memory
from trainer.metrics import Metrics
from trainer.segmenter import Segmenter, check_size

CLIP_OPTIONS = ("clip", "clip_weights", "image_size")
PLACES = {"cache", "root", "device", "workers", "log_every", "checkpoint_every", "seed", "limit", "shard", "kmeans"}
"""Settings that do not make a run another one than the paper's."""


@dataclass(frozen=True)
class Reproduction:
    """What is to be reproduced.

    Args:
        preset: one of `presets.PRESETS`.
        student: one of `presets.STUDENTS`; the preset's own by default.
        root: of the dataset; where `precompute` looks by default.
        out: folder of run and result; runs/<preset>_<student> by default.
        target: another dataset to evaluate on instead (Table 2), `voc` or `context`.
        target_root: its root.
        limit: only the first images, of training and of evaluation.
        max_failures: share of failed images that still counts as success.
        changed: options of `precompute` and `train` that replace the preset's.

    """

    preset: str
    student: str | None = None
    root: Path | None = None
    out: Path | None = None
    target: str | None = None
    target_root: Path | None = None
    limit: int | None = None
    max_failures: float = 0.01
    changed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        preset = preset_named(self.preset)
        preset.train(self.student)
        if self.target is not None and (self.preset != "coco" or self.target not in paper()["table 2"]):
            raise UsageError(
                f"--test-on {self.target} of {self.preset}: Table 2 has students trained on coco and tested on "
                f"{' and '.join(paper()['table 2'])}; others by `evaluate RUN --dataset NAME`"
            )
        if self.target is None and self.target_root is not None:
            raise UsageError(f"--test-root {self.target_root}: there is no --test-on that it belongs to")

    @property
    def student_name(self) -> str:
        """The student's name."""
        return self.student or preset_named(self.preset).student

    @property
    def settings(self) -> Settings:
        """Stage 1. A limited cache does not take the place of the whole one; one with dense tokens is welcome."""
        changed = self._changed(Settings, (*CLIP_OPTIONS, "views", "view_seed"))
        if self.limit is not None:
            dataset = preset_named(self.preset).dataset
            changed = {"cache": cache_folder() / f"{dataset}_{self.limit}.zarr"} | changed
        settings = settings_from(
            preset_named(self.preset).precompute(changed) | {"root": self.root, "limit": self.limit}
        )
        if "dense" not in changed and settings.cache.is_dir():
            return replace(settings, dense=Cache(settings.cache).layout.dense)
        return settings

    @property
    def config(self) -> TrainConfig:
        """Stage 2."""
        given = preset_named(self.preset).train(self.student) | self._changed(TrainConfig)
        places = {"cache": str(self.settings.cache), "root": str(self.root.absolute()) if self.root else None}
        return TrainConfig(**(given | places))

    @property
    def run(self) -> Path:
        """The run's folder."""
        suffix = "" if self.limit is None else f"_{self.limit}"
        return self.out or Path("runs") / f"{self.preset}_{self.student_name}{suffix}"

    @property
    def row(self) -> list[float]:
        """The paper's figures in per cent."""
        table = paper()["table 2"][self.target] if self.target else paper()["table 1"][self.preset]
        return table.get(self.student_name, [])

    @property
    def departures(self) -> list[str]:
        """What differs from the preset, for whoever compares the rows."""
        plain = replace(self, changed={}, limit=None)
        pairs = [(_told(self.settings), _told(plain.settings)), (asdict(self.config), asdict(plain.config))]
        told = [
            f"{name}={ours.get(name)} instead of {theirs.get(name)}"
            for ours, theirs in pairs
            for name in sorted((ours.keys() | theirs.keys()) - PLACES - {"dense"})
            if ours.get(name) != theirs.get(name)
        ]
        return told + ([] if self.limit is None else [f"only the first {self.limit} images"])

    def _changed(self, kind: type, more: Sequence[str] = ()) -> dict[str, Any]:
        known = {*more, *(entry.name for entry in fields(kind))}
        return {name: value for name, value in self.changed.items() if name in known}


@dataclass(frozen=True)
class Row:
    """What came out, and the paper's figures."""

    wanted: Reproduction
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
            "paper": dict(zip(columns, (value / 100 for value in self.wanted.row), strict=False)),
            "departures": self.wanted.departures,
            "seconds": dict(self.seconds),
            "run": str(self.wanted.run),
        }

    def __str__(self) -> str:
        """The paper's row and ours, in per cent."""
        rows = {"paper": self.wanted.row, "ours": [100 * v for v in self.found.at(self.gamma).summary.values()]}
        if self.found.words.transferred:
            told = self.found.by_familiarity(self.gamma).summary.values()
            rows["by training vocabulary"] = [100 * value for value in told]
        title = f"{self.wanted.preset} {self.wanted.student_name}"
        title += f" tested on {self.wanted.target}" if self.wanted.target else ""
        lines = [f"{title:32}" + "".join(f"{name:>9}" for name in Metrics.COLUMNS.values())]
        lines += [f"{name:32}" + "".join(f"{value:9.1f}" for value in row) for name, row in rows.items() if row]
        return "\n".join(lines + [f"not the paper's settings: {told}" for told in self.wanted.departures])


def reproduce(wanted: Reproduction, progress: Progress, note: Callable[[Dataset], None] = lambda _: None) -> Row:
    """Carry it out; interrupted or killed, the same call goes on. Writes `run`/<dataset>.json at the end.

    Raises what precompute, train and evaluate raise.
    """
    clock, evaluation = Clock(), preset_named(wanted.preset).evaluate
    images = _opened(wanted, note)
    config = wanted.config
    # everything that can be wrong with the student is wrong before CLIP is asked
    check_size(Segmenter(config.arch, config.encoder, config.encoder_weights, channels=1), config, config.size)
    cached(wanted.settings, progress, clock, wanted.max_failures)
    student = trained(config, wanted.run, progress, clock, config.device)
    words = words_of(student, images, None, cache_folder())
    predictor = Predictor(student, evaluation["sliding"], words)
    found = measured(predictor, images, [evaluation["gamma"]], progress, clock)
    row = Row(wanted, found, clock.seconds)
    (wanted.run / f"{images.name}.json").write_text(json.dumps(row.as_json(), indent=2) + "\n")
    return row


def dry_run(wanted: Reproduction, note: Callable[[Dataset], None] = lambda _: None) -> dict[str, Any]:
    """The plan of it: images, views, bytes, updates, and about how much GPU memory. Nothing is written or fetched.

    Memory is told for activations of two bytes and of four; bf16-mixed lies between. Never held against a GPU.
    """
    settings, config = wanted.settings, wanted.config
    tested = _opened(wanted, note)
    images = open_dataset(settings.dataset, settings.root, settings.split, settings.limit)
    clip = load_clip(replace(settings.clip, weights=RANDOM), "fp32", "cpu")
    layout = Layout(len(images), settings.cropping.count, clip.channels, clip.grid, settings.shard, settings.dense)
    segmenter = Segmenter(config.arch, config.encoder, "none", clip.channels)
    size = config.size or clip.image_size
    check_size(segmenter, config, size)
    vocabulary = vocabularies()[settings.dataset]
    seen = len(vocabulary.classes) - len(vocabulary.unseen)
    parameters = sum(parameter.numel() for parameter in segmenter.parameters())
    return {
        "precompute": _told(settings),
        "train": {name: value for name, value in asdict(config).items() if value is not None},
        "evaluate": preset_named(wanted.preset).evaluate | {"dataset": tested.name},
        "images": len(images),
        "tested": len(tested),
        "views": layout.views,
        "cache_bytes": sum(layout.bytes_per_image(label_bytes=1).values()) * len(images),
        "cache_exists": settings.cache.is_dir(),
        "iterations": config.iterations,
        "parameters": parameters,
        "gpu_bytes_about": [estimated_memory(config, segmenter, size, seen, mixed) for mixed in (True, False)],
        "paper": wanted.row,
        "departures": wanted.departures,
    }


def _opened(wanted: Reproduction, note: Callable[[Dataset], None]) -> Dataset:
    """The images to evaluate on: missing ones should be missed at once."""
    settings, split = wanted.settings, preset_named(wanted.preset).evaluate["split"]
    note(open_dataset(settings.dataset, settings.root, settings.split))
    if wanted.target is None:
        images = open_dataset(settings.dataset, wanted.root, split, wanted.limit)
    else:
        try:
            images = open_dataset(wanted.target, wanted.target_root, split, wanted.limit)
        except UserError as error:
            raise type(error)(str(error).replace("--root", "--test-root")) from None
    note(images)
    return images


def _told(settings: Settings) -> dict[str, Any]:
    told = asdict(settings) | {"clip": settings.clip.clip, "clip_weights": settings.clip.weights}
    told |= {"image_size": settings.clip.image_size, "prompts": settings.asked.name}
    told |= {"cropping": settings.cropping.fingerprint()}
    return {name: str(value) if isinstance(value, Path) else value for name, value in told.items() if value is not None}
