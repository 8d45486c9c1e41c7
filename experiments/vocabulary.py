"""A person's own class names for a trained student, with the text features it needs for them."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from data_cache.class_list import check_names, read_names
from data_cache.content import indistinguishable_classes
from data_cache.errors import UsageError, UserError
from data_cache.splits import Split, labelled_in_training
from experiments.transfer import encode_class_names
from pipeline.teacher.prompts import Prompts
from trainer.checkpoint import Checkpoint
from trainer.segmenter import Vocabulary

MAX_NAMES = 65535
"""What an index map of 16 bits can tell apart, and one value for none of them."""


def names_of(classes: str) -> tuple[str, ...]:
    """Class names from `--classes`: a list with commas, or a file with one name per line.

    Names that differ in capitals alone are one name to CLIP.

    Raises:
        UsageError: no names, a blank one, one twice, numbers before them, or too many.
        UserError: the file cannot be read.

    """
    # a list is never taken for a file: asking the system for so long a name is an error
    if "," not in classes and (file := Path(classes)).is_file():
        lines, unit, where = read_names(file), "line", f"--classes {file}"
    else:
        lines, unit, where = classes.split(",") if classes.strip() else [], "name", "--classes"
        if len(lines) == 1 and classes.endswith(".txt"):
            raise UsageError(f"--classes {classes}: no such file; write one class name per line, or pass the names")
    if not lines:
        raise UsageError(f'{where}: names no class; pass "name,name", or a file with one name per line')
    if len(lines) > MAX_NAMES:
        raise UsageError(f"{where}: {len(lines)} classes; at most {MAX_NAMES} fit into 16-bit index maps")
    names = tuple(" ".join(line.split()) for line in lines)
    check_names(names, where, unit, str.lower, UsageError)
    return names


def _check_distinct(classes: tuple[str, ...], text: Float[torch.Tensor, "class channel"]) -> None:
    for one, other, *_ in indistinguishable_classes(classes, text.numpy()):
        raise UsageError(
            f"--classes: the CLIP of this training cannot tell '{one[:40]}' and '{other[:40]}' apart (longer than it "
            "reads, or words it never learnt); name one otherwise, or leave it out"
        )


def vocabulary_for_names(
    student: Checkpoint,
    names: tuple[str, ...] | None,
    folder: Path,
    prompts: str | None = None,
    clip: str | None = None,
    weights: str | None = None,
) -> Vocabulary:
    """Those names with their text features; unseen are those that had no labels in the training.

    The features of names the student knows are its own; all others are encoded by its CLIP's text tower with the
    prompts of the training, so that they can be compared.

    Args:
        student: what was trained.
        names: what it is to choose from; None is what it was trained with.
        folder: where caches lie; text features are kept there.
        prompts: a set of `pipeline.teacher.prompts` for all names; None is that of the training.
        clip: the CLIP of the training, if it is not where it was.
        weights: its weights, likewise.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one of the training.

    """
    own = student.card["prompts"]["name"]
    prompt_set = Prompts(prompts or own)
    classes = student.split.classes if names is None else names
    place = {name.lower(): index for index, name in enumerate(student.split.classes)} if prompt_set.name == own else {}
    found = [place.get(name.lower()) for name in classes]
    strange = tuple(name for name, index in zip(classes, found, strict=True) if index is None)
    text = torch.empty(len(classes), student.text.shape[1])
    known = np.array([index is not None for index in found])
    text[known] = student.text.cpu()[[index for index in found if index is not None]]
    if strange:
        # cleaned names, as "wall-brick", are those of the dataset the student was trained on
        words = prompt_set.class_names(student.card["dataset"]["name"], strange)
        try:
            text[~known] = encode_class_names(student, prompt_set, words, folder, clip, weights)
        except UserError as error:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise error.prefixed(f"'{strange[0]}'{more} must be encoded by the text tower: ") from None
    if names is not None:  # those of the training are as they are, and were warned of before it
        _check_distinct(classes, text)
    labelled = student.vocabulary.labelled if names is None else labelled_in_training(classes, student.split.seen)
    unlabelled = tuple(name for name, has_labels in zip(classes, labelled, strict=True) if not has_labels)
    return Vocabulary(Split(classes, unlabelled), text, labelled)
