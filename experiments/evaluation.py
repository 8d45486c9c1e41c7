"""Evaluating a student: on the dataset of its training or another, at several gammas, and at one picked for it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, ProgressBar, ignore
from data_cache.content import indistinguishable_warnings
from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from data_cache.fingerprint import hash_names
from data_cache.paths import cache_folder
from data_cache.system.devices import resolve_device
from experiments.config import EvaluateConfig
from experiments.stages import Clock, measured
from experiments.transfer import vocabulary_for_dataset
from trainer.checkpoint import Checkpoint, load
from trainer.evaluate import Evaluation, check_labelled, pick_gamma
from trainer.predictor import Predictor


@dataclass(frozen=True)
class Result:
    """What came out; `picked` is the gamma chosen on training images, and what came out at it."""

    evaluation: Evaluation
    gammas: tuple[float, ...]
    picked: float | None = None

    @property
    def warnings(self) -> list[str]:
        """What its reader should know, a sentence each."""
        vocabulary = self.evaluation.vocabulary
        return [
            *self.evaluation.warnings,
            *indistinguishable_warnings(vocabulary.split.classes, vocabulary.text.numpy(force=True)),
        ]

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        reported = replace(self.evaluation, counts={g: self.evaluation.counts[g] for g in self.gammas}).as_json()
        if self.picked is not None:
            reported["picked"] = self.evaluation.at(self.picked).as_json(self.picked)
        return reported

    @property
    def lines(self) -> list[str]:
        """A line a gamma, in per cent."""
        lines = [f"{self.evaluation.at(gamma)}  (%, gamma {gamma:g})" for gamma in self.gammas]
        if self.evaluation.vocabulary.transferred:
            reported = self.evaluation.by_training_labels(self.gammas[0])
            lines.append(f"{reported}  (%, gamma {self.gammas[0]:g}; S: what had labels in training)")
        if self.picked is not None:
            reported = self.evaluation.at(self.picked)
            lines.append(f"{reported}  (%, gamma {self.picked:g}, picked on training images)")
        return lines


def measure(config: EvaluateConfig, progress_bar: ProgressBar, on_dataset: OnDataset = ignore) -> Result:
    """Evaluate a student; `on_dataset` gets the dataset.

    Raises:
        UserError, UsageError: no such checkpoint or images, images without a label map, or a CLIP that cannot be run
            for other classes.

    """
    images = open_dataset(config.dataset, config.root, config.split, config.limit)
    on_dataset(images)
    check_labelled(images)
    student = load(config.checkpoint, resolve_device(config.device))
    vocabulary = vocabulary_for_dataset(
        student, images, config.unseen, cache_folder(), config.prompts, config.clip, config.clip_weights
    )
    gammas, picked = config.gamma, None
    if config.pick_gamma:
        picked = pick(student, config, progress_bar)
        gammas = tuple(dict.fromkeys((*gammas, picked)))
    found = measured(Predictor(student, config.sliding, vocabulary), images, gammas, progress_bar, Clock())
    return Result(found, config.gamma, picked)


def pick(student: Checkpoint, config: EvaluateConfig, progress_bar: ProgressBar) -> float:
    """`trainer.evaluate.pick_gamma` on a student's own training images. Raises UserError if they are missing."""
    about, root = student.card["dataset"], student.card["recorded"]["root"]
    if config.dataset == about["name"] and config.root is not None:
        root = config.root
    try:
        images = open_dataset(about["name"], Path(root) if root else None, about["split"], about["images"])
    except UserError as error:
        raise error.prefixed("--pick-gamma needs the images of the training: ") from None
    if hash_names(images.ids) != about["ids_sha256"]:
        raise UserError(f"--pick-gamma: {root} does not hold the images this student was trained on")
    images = images.subset(range(min(config.pick_gamma, len(images))))
    with progress_bar("picking gamma", len(images), "images") as advance:
        return pick_gamma(Predictor(student, config.sliding), images, advance)
