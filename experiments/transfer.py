"""A new vocabulary for a trained student, with text features from the CLIP it was trained with."""

from itertools import compress
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from data_cache.class_list import open_vocabularies
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError
from data_cache.splits import Split, labelled_in_training, make_split
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.protocol import Teacher
from pipeline.teacher.rebuild import rebuild_teacher
from pipeline.teacher.texts import text_features
from trainer.checkpoint import Checkpoint
from trainer.segmenter import Vocabulary


def vocabulary_for_dataset(
    checkpoint: Checkpoint,
    dataset: Dataset,
    unseen: str | None,
    folder: Path,
    prompts: str | None = None,
    clip: str | None = None,
    weights: str | None = None,
) -> Vocabulary:
    """The vocabulary of a dataset: the checkpoint's if the classes are the same, else encoded by CLIP's text tower.

    Seen and unseen follow the dataset's split (our reading of the paper's Table 2). Labelled are the classes of which
    the name or a synonym had labels in training. On a dataset without a zero-shot split (`open_vocabularies`), these
    are also the seen classes.

    Args:
        checkpoint: the trained student.
        dataset: the dataset to segment.
        unseen: class names as for `precompute --unseen`; None is the published split.
        folder: folder in which text features are cached.
        prompts: a prompt set of `pipeline.teacher.prompts`; None is that of the dataset, as for `precompute`.
        clip: the CLIP used in training, if it has moved.
        weights: weights of `clip`.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one used in training.
        UsageError: an unknown unseen class, a dataset without a published split, or `unseen` or `prompts` for the
            training classes.

    """
    if dataset.classes == checkpoint.split.classes:
        if prompts is not None:
            raise UsageError("--prompts: the text features of the training classes are fixed; leave it out")
        if unseen is not None:
            raise UsageError("--unseen: the split of the training classes is fixed; leave it out")
        return checkpoint.vocabulary
    labelled = labelled_in_training(dataset.classes, checkpoint.split.seen)
    if unseen is None and dataset.name in open_vocabularies():
        split = Split(dataset.classes, tuple(compress(dataset.classes, ~labelled)))
    else:
        split = make_split(dataset.name, dataset.classes, unseen)
    prompt_set = Prompts(prompts) if prompts else Prompts.default_for(dataset.name)
    words = prompt_set.class_names(dataset.name, dataset.classes)
    features, unknown = encode_class_names(checkpoint, prompt_set, words, folder, clip, weights)
    return Vocabulary(split, features, labelled, unknown)


def encode_class_names(
    checkpoint: Checkpoint,
    prompts: Prompts,
    words: tuple[str, ...],
    folder: Path,
    clip: str | None = None,
    weights: str | None = None,
) -> tuple[Float[Tensor, "word channel"], tuple[str, ...]]:
    """Text features from the CLIP used in training, from the cache in `folder` or else from the text tower.

    The second result has the words that this CLIP never learned.

    Raises UserError if the CLIP cannot be loaded, or is not the one used in training.
    """
    fingerprint = checkpoint.card["clip"]

    def load() -> Teacher:
        origin = checkpoint.card.get("recorded", {}).get("clip")
        return rebuild_teacher(fingerprint, origin, clip, weights, torch.device("cpu"))

    features, unknown = text_features(fingerprint, prompts, words, checkpoint.text.shape[1], load, folder)
    return torch.from_numpy(features), unknown
