"""The legend of a figure: the classes that occur in it, with their colors."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from data_cache.datasets.base import void_of
from data_cache.splits import Split
from viewer.class_colors import class_colors


class LegendEntry(NamedTuple):
    """A text with its color (None: hatched), and whether it is a class without labels in training."""

    text: str
    color: UInt8[np.ndarray, "3"] | None
    unseen: bool = False


def legend_of(maps: Iterable[Integer[np.ndarray, "height width"]], split: Split) -> list[LegendEntry]:
    """The classes that occur in some label maps, in class order."""
    labels = sorted({int(value) for label in maps for value in np.unique(label[label != void_of(label)])})
    colors, unseen = class_colors(split.classes), ~split.is_seen
    return [LegendEntry(split.classes[label], colors[label], bool(unseen[label])) for label in labels]
