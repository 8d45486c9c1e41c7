"""A person's own class names for a trained student, with the text features it needs for them."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from data_cache.errors import UsageError, UserError
from data_cache.splits import Split, familiar
from experiments.transfer import ask_text
from pipeline.prompts import Prompts
from trainer.checkpoint import Checkpoint
from trainer.words import Words

MAX_NAMES = 65535
"""What an index map of 16 bits can tell apart, and one value for none of them."""


def names_of(classes: str) -> tuple[str, ...]:
    """Class names from `--classes`: a list with commas, or a file with one name a line.

    Names that differ in capitals alone are one name to CLIP.

    Raises:
        UsageError: no names, a blank one, one twice, or too many.
        UserError: the file cannot be read.

    """
    # a list is never taken for a file: asking the system for so long a name is an error
    if "," not in classes and (file := Path(classes)).is_file():
        lines, place, where = _read(file).rstrip().splitlines(), "line", f"--classes {file}"
    else:
        lines, place, where = classes.split(",") if classes.strip() else [], "name", "--classes"
        if len(lines) == 1 and classes.endswith(".txt"):
            raise UsageError(f"--classes {classes}: no such file; write one class name a line, or pass the names")
    if not lines:
        raise UsageError(f'{where}: names no class; pass "name,name", or a file with one name a line')
    if len(lines) > MAX_NAMES:
        raise UsageError(f"{where}: {len(lines)} classes; at most {MAX_NAMES} fit into 16-bit index maps")
    first: dict[str, int] = {}
    names = tuple(" ".join(line.split()) for line in lines)
    for number, name in enumerate(names, start=1):
        if not name:
            raise UsageError(f"{where}: {place} {number} is blank; leave it out")
        if (before := first.setdefault(name.lower(), number)) != number:
            raise UsageError(f"{where}: '{name}' is {place} {before} and again {place} {number}; leave one out")
    return names


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # Windows editors begin the file with a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {file}: save it as UTF-8 text ({type(error).__name__})") from None


def _check_distinct(classes: tuple[str, ...], text: Float[torch.Tensor, "class channel"]) -> None:
    _, first, count = torch.unique(text, dim=0, return_inverse=True, return_counts=True)
    for number in torch.nonzero(count > 1).flatten().tolist():
        one, other = (classes[i] for i in torch.nonzero(first == number).flatten().tolist()[:2])
        raise UsageError(
            f"--classes: the CLIP of this training cannot tell '{one[:40]}' and '{other[:40]}' apart (longer than it "
            "reads, or words it never learnt); name one otherwise, or leave it out"
        )


def vocabulary(
    student: Checkpoint,
    names: tuple[str, ...] | None,
    folder: Path,
    prompts: str | None = None,
    clip: str | None = None,
    weights: str | None = None,
) -> Words:
    """Those names with their text features; new are those that had no labels in the training.

    The features of names the student knows are its own; all others are asked of its CLIP's text tower with the
    prompts of the training, so that they can be compared.

    Args:
        student: what was trained.
        names: what it is to choose from; None is what it was trained with.
        folder: where caches lie; text features are kept there.
        prompts: a set of `pipeline.prompts` for all names; None is that of the training.
        clip: the CLIP of the training, if it is not where it was.
        weights: its weights, likewise.

    Raises:
        UserError: the CLIP cannot be loaded, or is not the one of the training.

    """
    own = student.card["prompts"]["name"]
    asked = Prompts(prompts or own)
    classes = student.split.classes if names is None else names
    place = {name.lower(): index for index, name in enumerate(student.split.classes)} if asked.name == own else {}
    found = [place.get(name.lower()) for name in classes]
    strange = tuple(name for name, index in zip(classes, found, strict=True) if index is None)
    text = torch.empty(len(classes), student.text.shape[1])
    known = np.array([index is not None for index in found])
    text[known] = student.text.cpu()[[index for index in found if index is not None]]
    if strange:
        # cleaned names, as "wall-brick", are those of the dataset the student was trained on
        words = asked.words(student.card["dataset"]["name"], strange)
        try:
            text[~known] = ask_text(student, asked, words, folder, clip, weights)
        except UserError as error:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise type(error)(f"'{strange[0]}'{more} must be asked of the text tower: {error}") from None
    _check_distinct(classes, text)
    is_familiar = student.words.familiar if names is None else familiar(classes, student.split.seen)
    new = tuple(name for name, had_labels in zip(classes, is_familiar, strict=True) if not had_labels)
    return Words(Split(classes, new), text, is_familiar)
