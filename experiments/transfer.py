"""Another vocabulary for a trained student: new names, new text features from the CLIP it was trained with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError
from data_cache.splits import familiar, make_split
from pipeline.clip import FrozenCLIP
from pipeline.prompts import Prompts
from pipeline.texts import text_features
from pipeline.weights import CLIPSource
from trainer.checkpoint import Checkpoint
from trainer.words import Words


def words_of(
    student: Checkpoint,
    dataset: Dataset,
    unseen: str | None,
    folder: Path,
    clip: str | None = None,
    weights: str | None = None,
) -> Words:
    """The words of a dataset: the student's own if its classes are the same, else asked of its CLIP's text tower.

    Seen and unseen are told by the dataset's own split (the reading of the paper's Table 2); familiar are the classes
    whose name, or a synonym, had labels in the training.

    Args:
        student: what was trained.
        dataset: what it is to segment.
        unseen: names as for `precompute --unseen`; None is the published split.
        folder: where caches lie; text features are kept there.
        clip: the CLIP of the training, if it is not where it was.
        weights: its weights, likewise.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one of the training.
        UsageError: no such unseen class, a dataset without a published split, or `unseen` for the student's own.

    """
    if dataset.classes == student.split.classes:
        if unseen is not None:
            raise UsageError("--unseen: these are the classes of the training, whose split stays; leave it out")
        return student.words
    split = make_split(dataset.name, dataset.classes, unseen)
    prompts = Prompts(student.card["prompts"]["name"])
    teacher = student.card["clip"]

    def load() -> FrozenCLIP:
        return _same_clip(student.card, clip, weights)

    features = text_features(teacher, prompts, prompts.words(dataset.name, dataset.classes), load, folder)
    return Words(split, torch.from_numpy(features), familiar(dataset.classes, student.split.seen))


def _same_clip(card: Mapping[str, Any], clip: str | None, weights: str | None) -> FrozenCLIP:
    teacher, origin = card["clip"], card.get("recorded", {}).get("clip") or {}
    clip = clip or origin.get("clip") or teacher["model"]
    weights = weights or origin.get("weights") or ""
    found = FrozenCLIP(CLIPSource(clip, weights, teacher["image_size"]), "fp32", torch.device("cpu"))
    if found.weights_hash != teacher["weights_sha256"]:
        raise UserError(
            f"--clip {clip}{f' --clip-weights {weights}' if weights else ''}: not the CLIP that this student was "
            f"trained with ({teacher['model']}, weights {teacher['weights_sha256'][:12]}); pass that one"
        )
    return found
