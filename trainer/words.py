"""The class names a student chooses from, and which of them are new to it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from data_cache.splits import Split


@dataclass(frozen=True)
class Words:
    """Class names with their text features.

    Args:
        split: the names, and which of them metrics count as seen and unseen.
        text: a feature a name.
        familiar: which names had labels in training; gamma goes to the others. On the dataset of the training these
            are the seen ones, on another one those that mean the same (`data_cache.splits.familiar`).

    """

    split: Split
    text: Float[Tensor, "class channel"]
    familiar: Bool[np.ndarray, "class"]

    @property
    def transferred(self) -> bool:
        """Whether seen and familiar differ: the names are those of another dataset than the training's."""
        return not np.array_equal(self.familiar, self.split.is_seen)
