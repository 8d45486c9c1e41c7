"""Seen and unseen classes, always given by name."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int16, Int64, Integer, UInt8

from data_cache.class_list import class_lists
from data_cache.errors import UsageError
from data_cache.messages import did_you_mean, first_names

VOID_RANK = 255
FEW = 6
"""Hidden values of a label map up to which comparing each of them is faster than a table."""


@dataclass(frozen=True)
class Split:
    """The classes of a dataset, and the unseen ones, whose pixel labels are hidden in training.

    `unseen` may be given in any order; it is sorted into class order, so that equal splits compare equal.
    """

    classes: tuple[str, ...]
    unseen: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = set(self.unseen) - set(self.classes)
        if unknown:
            raise ValueError(f"unknown unseen classes: {sorted(unknown)}")
        object.__setattr__(self, "unseen", tuple(name for name in self.classes if name in self.unseen))

    @property
    def seen(self) -> tuple[str, ...]:
        """Names of the seen classes in class order."""
        hidden = set(self.unseen)
        return tuple(name for name in self.classes if name not in hidden)

    @property
    def is_seen(self) -> Bool[np.ndarray, "class"]:
        """Whether each class is seen, by class id."""
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
        """The table from class id to rank among the seen classes; 255 for unseen classes and void."""
        table = np.full(256, VOID_RANK, dtype=np.uint8)
        table[self.seen_index] = np.arange(len(self.seen_index), dtype=np.uint8)
        return table

    def is_hidden(
        self, label: UInt8[np.ndarray, "*pixel"], values: Integer[np.ndarray, "value"] | None = None
    ) -> Bool[np.ndarray, "*pixel"]:
        """Whether each pixel has no label in training: it is void or its class is unseen.

        `values` are all that may occur, if they are known, which makes this several times as fast.
        """
        if values is None or (hidden := values[self._hidden[values]]).size > FEW:
            return self._hidden.take(label)
        found = np.zeros(label.shape, bool)
        for value in hidden.tolist():
            found |= label == value
        return found

    @cached_property
    def _hidden(self) -> Bool[np.ndarray, "256"]:
        return self.seen_rank() == VOID_RANK

    def hide_unseen(self, label: UInt8[np.ndarray, "*pixel"]) -> UInt8[np.ndarray, "*pixel"]:
        """The label map with unseen classes replaced by 255."""
        return np.where(self.is_hidden(label), np.uint8(VOID_RANK), label)

    def seen_target(self, label: UInt8[np.ndarray, "*pixel"]) -> Int16[np.ndarray, "*pixel"]:
        """Rank of each pixel's class among the seen classes; -1 for unseen classes and void."""
        rank = self.seen_rank()[label].astype(np.int16)
        return np.where(rank == VOID_RANK, np.int16(-1), rank)


def labelled_in_training(classes: Sequence[str], trained: Sequence[str]) -> Bool[np.ndarray, "class"]:
    """Which classes of a dataset had labels in training on another dataset with the seen classes `trained`.

    Classes match if their names have the same `meaning`.
    """
    known = {meaning(name) for name in trained}
    return np.array([meaning(name) in known for name in classes], dtype=bool)


def meaning(name: str) -> str:
    """The same name for all names of a class in `synonyms.json`, regardless of case.

    "tvmonitor" is "tv", and "wall" is any kind of wall.
    """
    return _synonyms().get(name.lower(), name.lower())


@cache
def _synonyms() -> dict[str, str]:
    groups = json.loads(Path(__file__).with_name("synonyms.json").read_text(encoding="utf-8"))
    return {name: group[0] for group in groups for name in group}


def make_split(dataset_name: str, classes: Sequence[str], unseen: str | None) -> Split:
    """Divide classes into seen and unseen ones.

    Args:
        dataset_name: The dataset, whose published split is used if `unseen` is None.
        classes: Its class names; the position is the class id.
        unseen: Comma-separated class names. "" hides none; None selects the published split.

    Raises:
        UsageError: A name is not a class, no seen class remains, or the dataset has no published split.

    """
    if unseen is None:
        if dataset_name not in class_lists():
            raise UsageError(f'{dataset_name} has no published split: pass --unseen "name,name"')
        names = class_lists()[dataset_name].unseen
    else:
        names = tuple(dict.fromkeys(name.strip() for name in unseen.split(",") if name.strip()))
    for name in names:
        if name not in classes:
            nearest = did_you_mean(name, classes) or f"; its {len(classes)} classes are {first_names(classes)}"
            raise UsageError(f"--unseen: no class named '{name}' in {dataset_name}{nearest}")
    split = Split(tuple(classes), names)
    if not split.seen:
        raise UsageError(f"--unseen names all {len(classes)} classes of {dataset_name}: leave at least one seen")
    return split
