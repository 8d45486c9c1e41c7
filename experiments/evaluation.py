"""Evaluating a student: on the dataset of its training or another, at several gammas, and at one picked for it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import UsageError, UserError
from data_cache.fingerprint import hash_names
from data_cache.places import cache_folder
from experiments.presets import preset_named
from experiments.stages import Clock, Progress, measured
from experiments.transfer import words_of
from trainer.checkpoint import Checkpoint, load
from trainer.evaluate import GAMMA, Evaluation, Predictor
from trainer.gamma import pick_gamma


@dataclass(frozen=True)
class Asked:
    """What `evaluate` is asked for; names and defaults are those of the command line."""

    checkpoint: Path
    dataset: str
    root: Path | None = None
    split: str = "val"
    limit: int | None = None
    unseen: str | None = None
    gamma: tuple[float, ...] = (GAMMA,)
    pick_gamma: int = 0
    sliding: bool = False
    clip: str | None = None
    clip_weights: str | None = None
    prompts: str | None = None
    device: str = "auto"

    @classmethod
    def of(cls, checkpoint: Path, given: Mapping[str, Any], preset: str | None) -> "Asked":
        """From options by name, those of a preset below them. Raises UsageError for a gamma that is no number."""
        options = (preset_named(preset).evaluate if preset else {}) | dict(given)
        if "dataset" not in options:
            raise UsageError("--dataset: name the dataset to evaluate on, or pass --preset")
        gammas = tuple(map(_one_of_several, str(options.get("gamma", GAMMA)).split(",")))
        return cls(checkpoint, **(options | {"gamma": tuple(dict.fromkeys(gammas))}))


@dataclass(frozen=True)
class Result:
    """What came out; `picked` is the gamma chosen on training images, and what came out at it."""

    evaluation: Evaluation
    gammas: tuple[float, ...]
    picked: float | None = None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        told = Evaluation(self.evaluation.words, {g: self.evaluation.counts[g] for g in self.gammas}).as_json()
        if self.picked is not None:
            told["picked"] = self.evaluation.at(self.picked).as_json(self.picked)
        return told

    def __str__(self) -> str:
        """A line a gamma, in per cent."""
        lines = [f"{self.evaluation.at(gamma)}  (%, gamma {gamma:g})" for gamma in self.gammas]
        if self.evaluation.words.transferred:
            told = self.evaluation.by_familiarity(self.gammas[0])
            lines.append(f"{told}  (%, gamma {self.gammas[0]:g}; S: what had labels in training)")
        if self.picked is not None:
            told = self.evaluation.at(self.picked)
            lines.append(f"{told}  (%, gamma {self.picked:g}, picked on training images)")
        return "\n".join(lines)


def measure(asked: Asked, progress: Progress, note: Callable[[Dataset], None] = lambda _: None) -> Result:
    """Evaluate a student as asked; `note` hears of the images.

    Raises:
        UserError, UsageError: no such checkpoint or images, or a CLIP that cannot be asked for other classes.

    """
    images = open_dataset(asked.dataset, asked.root, asked.split, asked.limit)
    note(images)
    student = load(asked.checkpoint, resolve_device(asked.device))
    words = words_of(student, images, asked.unseen, cache_folder(), asked.prompts, asked.clip, asked.clip_weights)
    gammas, picked = asked.gamma, None
    if asked.pick_gamma:
        picked = pick(student, asked, progress)
        gammas = tuple(dict.fromkeys((*gammas, picked)))
    found = measured(Predictor(student, asked.sliding, words), images, gammas, progress, Clock())
    return Result(found, asked.gamma, picked)


def pick(student: Checkpoint, asked: Asked, progress: Progress) -> float:
    """The gamma for a student by its own training images (`trainer.gamma`). Raises UserError if they are not there."""
    about, root = student.card["dataset"], student.card["recorded"]["root"]
    if asked.dataset == about["name"] and asked.root is not None:
        root = asked.root
    try:
        images = open_dataset(about["name"], Path(root) if root else None, about["split"], about["images"])
    except UserError as error:
        raise type(error)(f"--pick-gamma needs the images of the training: {error}") from None
    if hash_names(images.ids) != about["ids_sha256"]:
        raise UserError(f"--pick-gamma: {root} does not hold the images this student was trained on")
    images = images.limited(asked.pick_gamma)
    with progress("picking gamma", len(images), "images") as advance:
        return pick_gamma(Predictor(student, asked.sliding), images, advance)


LARGEST = 1e6
"""Beyond any logit: cosines over tau are 15 at the most."""


def gamma_of(text: str, more: str = "") -> float:
    """The number of `--gamma`. Raises UsageError for what is none; `more` ends it."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise UsageError(f"--gamma {text}: must be a number{more}")
    return value


def _one_of_several(text: str) -> float:
    return gamma_of(text, ", or several with commas between them")
