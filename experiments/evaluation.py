"""Evaluates a student on any dataset, at several gammas and at one picked on training images."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, OnWarnings, ProgressBar, ignore
from data_cache.datasets import labelled_images, open_dataset
from data_cache.errors import UserError
from data_cache.fingerprint import hash_names
from data_cache.messages import count
from data_cache.paths import cache_folder
from data_cache.system.devices import resolve_device
from experiments.config import EvaluateConfig
from experiments.stages import StageTimer, evaluate_stage
from experiments.transfer import vocabulary_for_dataset
from trainer.checkpoint import Checkpoint, load
from trainer.evaluate import Evaluation, check_labelled, pick_gamma
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from viewer.cards import card, table


@dataclass(frozen=True, repr=False)
class EvaluationReport:
    """An evaluation on a split of a dataset at some gammas; `picked` is the gamma picked on training images, if any.

    `setting` says whether the student's training was inductive or transductive. Notebooks show a table.
    """

    evaluation: Evaluation
    gammas: tuple[float, ...]
    dataset: str
    split: str
    picked: float | None = None
    setting: str = "inductive"

    @property
    def metrics(self) -> Metrics:
        """The metrics at the first gamma."""
        return self.evaluation.at(self.gammas[0])

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        reported = replace(self.evaluation, counts={g: self.evaluation.counts[g] for g in self.gammas}).as_json()
        if self.picked is not None:
            reported["picked"] = self.evaluation.at(self.picked).as_json(self.picked)
        return {"dataset": self.dataset, "split": self.split, "setting": self.setting, **reported}

    @property
    def lines(self) -> list[str]:
        """One line per gamma, in percent."""
        lines = [f"{self.evaluation.at(gamma)}  (%, gamma {gamma:g})" for gamma in self.gammas]
        if self.evaluation.vocabulary.transferred:
            metrics = self.evaluation.by_training_labels(self.gammas[0])
            lines.append(f"{metrics}  (%, gamma {self.gammas[0]:g}; S: classes with labels in training)")
        if self.picked is not None:
            metrics = self.evaluation.at(self.picked)
            lines.append(f"{metrics}  (%, gamma {self.picked:g}, picked on training images)")
        if self.setting == "transductive":
            lines.append("transductive: the names of the unseen classes were known in training, their labels were not")
        return lines

    def __repr__(self) -> str:
        return "\n".join(self.lines)

    def _repr_html_(self) -> str:
        gammas = [(f"{gamma:g}", gamma) for gamma in self.gammas]
        if self.picked is not None:
            gammas.append((f"{self.picked:g} (picked on training images)", self.picked))
        rows = [
            (name, *(f"{100 * value:.1f}" for value in self.evaluation.at(gamma).all.values()))
            for name, gamma in gammas
        ]
        return card(
            f"{count(self.evaluation.images, 'image')}, in percent ({self.setting})",
            table(rows, ["gamma", *Metrics.ALL_COLUMNS.values()]),
        )


def evaluate_checkpoint(
    config: EvaluateConfig,
    progress_bar: ProgressBar,
    on_dataset: OnDataset = ignore,
    on_warnings: OnWarnings = ignore,
) -> EvaluationReport:
    """Evaluate a student on the images that have a label map.

    Raises:
        UserError, UsageError: the checkpoint or the images are missing, no image has a label map, or the dataset has
            other classes and the CLIP used in training cannot be loaded.

    """
    images = labelled_images(open_dataset(config.dataset, config.root, config.split, config.limit))
    on_dataset(images)
    check_labelled(images)
    checkpoint = load(config.checkpoint, resolve_device(config.device))
    vocabulary = vocabulary_for_dataset(
        checkpoint, images, config.unseen, cache_folder(), config.prompts, config.clip, config.clip_weights
    )
    on_warnings(vocabulary.problems)
    gammas, picked = config.gamma or (checkpoint.gamma(),), None
    if config.pick_gamma:
        picked = _pick_gamma(checkpoint, config, progress_bar)
    predictor = Predictor(checkpoint, config.sliding, vocabulary)
    evaluated = dict.fromkeys(gammas if picked is None else (*gammas, picked))
    evaluation = evaluate_stage(predictor, images, tuple(evaluated), progress_bar, StageTimer())
    return EvaluationReport(evaluation, gammas, images.name, images.split, picked, checkpoint.config.setting)


def _pick_gamma(checkpoint: Checkpoint, config: EvaluateConfig, progress_bar: ProgressBar) -> float:
    """Pick gamma on the first training images. Raises UserError if they are missing or changed."""
    dataset, root = checkpoint.card["dataset"], checkpoint.card["recorded"]["root"]
    if config.dataset == dataset["name"] and config.root is not None:
        root = config.root
    try:
        images = open_dataset(dataset["name"], Path(root) if root else None, dataset["split"], dataset["images"])
    except UserError as error:
        raise error.prefixed("--pick-gamma needs the training images: ") from None
    if hash_names(images.ids) != dataset["ids_sha256"]:
        raise UserError(f"--pick-gamma: {root} does not hold the images this student was trained on")
    images = images.subset(range(min(config.pick_gamma, len(images))))
    with progress_bar("picking gamma", len(images), "images") as advance:
        return pick_gamma(Predictor(checkpoint, config.sliding), images, advance)
