"""Another vocabulary for a trained student: new names, new text features from the CLIP it was trained with."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError
from data_cache.splits import labelled_in_training, make_split
from pipeline.teacher.clip import FrozenCLIP, load_matching_clip
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.texts import text_features
from trainer.checkpoint import Checkpoint
from trainer.segmenter import Vocabulary


def vocabulary_for_dataset(
    student: Checkpoint,
    dataset: Dataset,
    unseen: str | None,
    folder: Path,
    prompts: str | None = None,
    clip: str | None = None,
    weights: str | None = None,
) -> Vocabulary:
    """The vocabulary of a dataset: the student's own if its classes are the same, else from its CLIP's text tower.

    Seen and unseen follow the dataset's own split (the reading of the paper's Table 2); labelled are the classes
    whose name, or a synonym, had labels in training.

    Args:
        student: what was trained.
        dataset: what it is to segment.
        unseen: names as for `precompute --unseen`; None is the published split.
        folder: where caches lie; text features are kept there.
        prompts: a set of `pipeline.teacher.prompts`; None is that of the dataset's protocol, as for `precompute`.
        clip: the CLIP of the training, if it is not where it was.
        weights: its weights, likewise.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one of the training.
        UsageError: no such unseen class, a dataset without a published split, or `unseen` for the student's own.

    """
    if dataset.classes == student.split.classes:
        if prompts is not None:
            raise UsageError("--prompts: these are the classes of the training, whose text features stay; leave it out")
        if unseen is not None:
            raise UsageError("--unseen: these are the classes of the training, whose split stays; leave it out")
        return student.vocabulary
    split = make_split(dataset.name, dataset.classes, unseen)
    prompt_set = Prompts(prompts) if prompts else Prompts.default_for(dataset.name)
    features = encode_class_names(
        student, prompt_set, prompt_set.class_names(dataset.name, dataset.classes), folder, clip, weights
    )
    return Vocabulary(split, features, labelled_in_training(dataset.classes, student.split.seen))


def encode_class_names(
    student: Checkpoint,
    prompts: Prompts,
    words: tuple[str, ...],
    folder: Path,
    clip: str | None = None,
    weights: str | None = None,
) -> Float[Tensor, "word channel"]:
    """Text features by the CLIP of the training: those kept in `folder`, else the text tower's.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one of the training.

    """
    teacher = student.card["clip"]

    def load() -> FrozenCLIP:
        origin = student.card.get("recorded", {}).get("clip")
        return load_matching_clip(teacher, origin, clip, weights, torch.device("cpu"))

    return torch.from_numpy(text_features(teacher, prompts, words, student.text.shape[1], load, folder))
