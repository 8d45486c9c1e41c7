"""Class lists: those published with the datasets, and those written by users."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from data_cache.errors import UserError
from data_cache.system.files import unreadable_error

NUMBER_FIRST = re.compile(r"[(#\[]?(?P<number>\d{1,6})(?P<mark>[\s:;,.)\]=-]+)(?P<name>[^\W\d].*)")
NUMBER_LAST = re.compile(r"(?P<name>.*?\w)(?P<mark>[\s:;,(=]+)(?P<number>\d{1,6})\)?")


class ClassList(NamedTuple):
    """The published class names of a dataset, and the unseen classes of its published zero-shot split.

    `raw_ids` are the classes' values in label maps that do not count from 0, `missing_raw_ids` the values that such
    maps skip. `clean` maps names such as "river-water" to their spelling in prompts.
    """

    classes: tuple[str, ...]
    unseen: tuple[str, ...]
    missing_raw_ids: frozenset[int]
    raw_ids: tuple[int, ...]
    clean: Mapping[str, str]


@cache
def class_lists() -> dict[str, ClassList]:
    """The published class lists (`class_lists.json`) by dataset name."""
    return _read_lists("class_lists.json")


@cache
def open_vocabularies() -> dict[str, ClassList]:
    """The class lists of datasets without a zero-shot split (`open_vocabularies.json`) by dataset name.

    On them, the seen classes are those that had labels in training.
    """
    return _read_lists("open_vocabularies.json")


def known_lists() -> dict[str, ClassList]:
    """All class lists by dataset name."""
    return class_lists() | open_vocabularies()


def _read_lists(name: str) -> dict[str, ClassList]:
    entries = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return {
        name: class_lists()[entry["same_as"]]._replace(unseen=())
        if "same_as" in entry
        else ClassList(
            tuple(entry["classes"]),
            tuple(entry.get("unseen", ())),
            frozenset(entry.get("missing_raw_ids", ())),
            tuple(entry.get("raw_ids", ())),
            entry.get("clean", {}),
        )
        for name, entry in entries.items()
    }


def read_names(file: Path) -> list[str]:
    """The lines of a file of class names, without trailing blank lines.

    Raises FileNotFoundError if it is missing, UserError if it is not UTF-8 text, UnreadableError if it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8-sig").rstrip().splitlines()  # Windows editors write a byte order mark
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable_error(error, file) from None
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {file}: save it as UTF-8 text ({type(error).__name__})") from None


def check_names(
    names: Sequence[str],
    where: str,
    unit: str = "line",
    key: Callable[[str], str] = str,
    error: type[UserError] = UserError,
) -> None:
    """Raise `error` for numbered, blank or duplicate class names.

    Args:
        names: The names.
        where: The start of the message, such as their file.
        unit: What a position in `names` counts: lines or names.
        key: Names with equal keys are duplicates.
        error: The class of the error.

    """
    if problem := _numbering_problem(names):
        raise error(f"{where}: {problem}")
    first: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise error(f"{where}: {unit} {number} is blank: each {unit} is a class; delete it")
        if (before := first.setdefault(key(name), number)) != number:
            raise error(f"{where}: '{name}' is {unit} {before} and again {unit} {number}; delete one")


def _numbering_problem(lines: Sequence[str]) -> str:
    """A message if class names are numbered, such as "0: sky"; "" otherwise.

    They are numbered if every line has a number separated by a mark and the numbers increase, or if the separator is
    only a space and the numbers count up from 0, or from 1 over at least three lines. "7 up" is a name, and so are
    "1 euro" and "2 euro": without their numbers they would be equal.
    """
    for pattern in (NUMBER_FIRST, NUMBER_LAST):
        matches = [pattern.fullmatch(line.strip()) for line in lines]
        if len(matches) < 2 or None in matches:
            continue
        parts = [(int(match["number"]), match["name"], match["mark"].strip(" \t-")) for match in matches if match]
        numbers, names, marks = zip(*parts, strict=True)
        steps = {b - a for a, b in pairwise(numbers)}
        counted = steps == {1} and (numbers[0] == 0 or (numbers[0] == 1 and len(lines) > 2))
        if len(set(names)) == len(names) and (counted or (all(marks) and min(steps) > 0)):
            return (
                f"'{lines[0].strip()}' contains a number: write only the name, as in '{names[0]}'; the order of the "
                "list gives the numbers"
            )
    return ""
