"""Which classes are seen and which are not: always by name, never by an index copied from elsewhere."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt8

from data_cache.errors import UsageError

VOID_RANK = 255


class Vocabulary(NamedTuple):
    """The published class list of a dataset and the classes that zero-shot papers hide in it.

    `raw_ids` are the classes' values in label maps that do not count from 0; `clean` has names that a person
    would write otherwise in a sentence.
    """

    classes: tuple[str, ...]
    unseen: tuple[str, ...]
    missing_raw_ids: frozenset[int]
    raw_ids: tuple[int, ...]
    clean: Mapping[str, str]


@cache
def vocabularies() -> dict[str, Vocabulary]:
    """Return the class lists of `vocabularies.json` by dataset name."""
    entries = json.loads(Path(__file__).with_name("vocabularies.json").read_text(encoding="utf-8"))
    return {
        name: Vocabulary(
            tuple(entry["classes"]),
            tuple(entry["unseen"]),
            frozenset(entry.get("missing_raw_ids", ())),
            tuple(entry.get("raw_ids", ())),
            entry.get("clean", {}),
        )
        for name, entry in entries.items()
    }


@dataclass(frozen=True)
class Split:
    """The classes of a dataset, and those of them whose pixel labels are hidden in training.

    `unseen` is brought into class order whatever order it is given in, so that equal splits compare equal.
    """

    classes: tuple[str, ...]
    unseen: tuple[str, ...]

    def __post_init__(self) -> None:
        strangers = set(self.unseen) - set(self.classes)
        if strangers:
            raise ValueError(f"unseen classes that are no classes: {sorted(strangers)}")
        object.__setattr__(self, "unseen", tuple(name for name in self.classes if name in self.unseen))

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of the seen classes in class order."""
        hidden = set(self.unseen)
        return tuple(name for name in self.classes if name not in hidden)

    @property
    def is_seen(self) -> Bool[np.ndarray, "class"]:
        """Whether a class is seen, by class id."""
        hidden = set(self.unseen)
        return np.array([name not in hidden for name in self.classes], dtype=bool)

    @property
    def seen_index(self) -> Int64[np.ndarray, "seen"]:
        """Ids of the seen classes, ascending."""
        return np.flatnonzero(self.is_seen).astype(np.int64)

    @property
    def unseen_index(self) -> Int64[np.ndarray, "unseen"]:
        """Ids of the unseen classes, ascending."""
        return np.flatnonzero(~self.is_seen).astype(np.int64)

    def seen_rank(self) -> UInt8[np.ndarray, "256"]:
        """Return the table from class id to rank among the seen classes; 255 for unseen classes and void."""
        table = np.full(256, VOID_RANK, dtype=np.uint8)
        table[self.seen_index] = np.arange(len(self.seen_index), dtype=np.uint8)
        return table


def familiar(classes: Sequence[str], trained: Sequence[str]) -> Bool[np.ndarray, "class"]:
    """Which classes of one dataset had labels in a training on another, whose seen classes were `trained`.

    The same name, in capitals or not, or one of `synonyms.json`: "tvmonitor" is "tv", and "wall" any kind of wall.
    """
    groups = json.loads(Path(__file__).with_name("synonyms.json").read_text(encoding="utf-8"))
    meaning = {name: group[0] for group in groups for name in group}
    known = {meaning.get(name.lower(), name.lower()) for name in trained}
    return np.array([meaning.get(name.lower(), name.lower()) in known for name in classes], dtype=bool)


def make_split(dataset_name: str, classes: Sequence[str], unseen: str | None) -> Split:
    """Divide `classes` into seen and unseen ones.

    Args:
        dataset_name: The dataset, whose published split stands in when `unseen` is None.
        classes: Its class names; the position is the class id.
        unseen: Comma-separated class names. "" hides none; None takes the published split.

    Raises:
        UsageError: A name is no class, no class remains seen, or there is no published split to fall back on.

    """
    if unseen is None:
        if dataset_name not in vocabularies():
            raise UsageError(f'{dataset_name} has no published split: pass --unseen "name,name"')
        names = vocabularies()[dataset_name].unseen
    else:
        names = tuple(dict.fromkeys(name.strip() for name in unseen.split(",") if name.strip()))
    for name in names:
        if name not in classes:
            raise UsageError(f"--unseen: no class named '{name}' in {dataset_name}{_hint(name, classes)}")
    split = Split(tuple(classes), names)
    if not split.seen:
        raise UsageError(f"--unseen names all {len(classes)} classes of {dataset_name}: leave at least one seen")
    return split


def _hint(name: str, classes: Sequence[str]) -> str:
    """End the sentence about an unknown class: near names, or where the list begins."""
    by_lower = {known.lower(): known for known in classes}
    # "floor" and "sky" are no near spelling of "floor-wood" and "sky-other", but what people type for them
    near = [key for key in by_lower if name.lower() in key]
    near += difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.7)
    if near:
        quoted = [f"'{by_lower[key]}'" for key in dict.fromkeys(near)][:3]
        return f"; did you mean {' or '.join(quoted)}?"
    return f"; its {len(classes)} classes are {', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''}"
