"""Arbitrary class names for a trained student, with their text features."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from data_cache.class_list import check_names, read_names
from data_cache.content import text_problems
from data_cache.errors import UsageError, UserError
from data_cache.splits import Split, labelled_in_training
from experiments.transfer import encode_class_names
from pipeline.teacher.prompts import Prompts
from trainer.checkpoint import Checkpoint
from trainer.segmenter import Vocabulary

MAX_NAMES = 65535
"""The indices of a 16-bit index map, less one reserved value."""


def parse_names(classes: str) -> tuple[str, ...]:
    """Class names from `--classes`: a comma-separated list, or a file with one name per line.

    Names that differ only in case are equal, since CLIP lowercases text.

    Raises:
        UsageError: there are no names, or blank, duplicate, numbered or too many names.
        UserError: the file cannot be read.

    """
    # a list is never looked up as a file, because the system raises an error for very long file names
    if "," not in classes and (file := Path(classes)).is_file():
        lines, unit, where = read_names(file), "line", f"--classes {file}"
    else:
        lines, unit, where = classes.split(",") if classes.strip() else [], "name", "--classes"
        if len(lines) == 1 and classes.endswith(".txt"):
            raise UsageError(f"--classes {classes}: no such file; write one class name per line, or pass the names")
    return check_class_names(lines, where, unit)


def check_class_names(classes: Sequence[str], where: str, unit: str = "name") -> tuple[str, ...]:
    """Class names with single spaces. Raises UsageError as `parse_names` does, starting with `where`."""
    if not classes:
        raise UsageError(f'{where}: names no class; pass "name,name", or a file with one name per line')
    if other := [name for name in classes if not isinstance(name, str)]:
        raise UsageError(f"{where}: {other[0]!r} is not a name; pass strings")
    if len(classes) > MAX_NAMES:
        raise UsageError(f"{where}: {len(classes)} classes; at most {MAX_NAMES} fit into 16-bit index maps")
    names = tuple(" ".join(name.split()) for name in classes)
    check_names(names, where, unit, str.lower, UsageError)
    return names


def vocabulary_for_names(
    checkpoint: Checkpoint,
    names: tuple[str, ...] | None,
    folder: Path,
    prompts: str | None = None,
    clip: str | None = None,
    weights: str | None = None,
) -> Vocabulary:
    """A vocabulary of some class names; unseen are those that had no labels in training.

    Training classes keep their text features. All other names are encoded by the CLIP used in training, by default
    with the same prompts, so that their features are comparable.

    Args:
        checkpoint: the trained student.
        names: the class names; None selects the training classes.
        folder: folder in which text features are cached.
        prompts: a prompt set of `pipeline.teacher.prompts` for all names; None selects the one used in training.
        clip: the CLIP used in training, if it has moved.
        weights: weights of `clip`.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one used in training.
        UsageError: CLIP cannot tell two of the names apart.

    """
    own_prompts = checkpoint.card["prompts"]["name"]
    prompt_set = Prompts(prompts or own_prompts)
    classes = checkpoint.split.classes if names is None else names
    reusable = checkpoint.split.classes if prompt_set.name == own_prompts else ()
    index_of = {name.lower(): index for index, name in enumerate(reusable)}
    indices = [index_of.get(name.lower()) for name in classes]
    new = tuple(name for name, index in zip(classes, indices, strict=True) if index is None)
    text = torch.empty(len(classes), checkpoint.text.shape[1])
    known = np.array([index is not None for index in indices])
    text[known] = checkpoint.text.cpu()[[index for index in indices if index is not None]]
    unknown: tuple[str, ...] = ()
    if new:
        # names are cleaned as in the training dataset ("wall-brick")
        words = prompt_set.class_names(checkpoint.card["dataset"]["name"], new)
        try:
            text[~known], unknown = encode_class_names(checkpoint, prompt_set, words, folder, clip, weights)
        except UserError as error:
            more = f" and {len(new) - 1} more" if len(new) > 1 else ""
            raise error.prefixed(f"'{new[0]}'{more} must be encoded by the text tower: ") from None
    labelled = checkpoint.vocabulary.labelled if names is None else labelled_in_training(classes, checkpoint.split.seen)
    unlabelled = tuple(name for name, has_labels in zip(classes, labelled, strict=True) if not has_labels)
    # training classes were checked before training, with a warning
    if names is not None and (problems := text_problems(classes, text.numpy())):
        raise UsageError(f"--classes: {problems[0]}")
    return Vocabulary(Split(classes, unlabelled), text, labelled, unknown)
