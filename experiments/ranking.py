"""How well scores rank what is present above what is absent: ROC AUC and average precision."""

import numpy as np
from jaxtyping import Bool, Float

from pipeline.tiny import retrieval


def auc(scores: Float[np.ndarray, "item"], present: Bool[np.ndarray, "item"]) -> float | None:
    """The probability that a present item has a higher score than an absent one; a tie counts as half.

    None if all or none are present.
    """
    positive, negative = scores[present], np.sort(scores[~present])
    if not len(positive) or not len(negative):
        return None
    lower = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(lower.mean() / 2 / len(negative))


def average_precision(scores: Float[np.ndarray, "item"], present: Bool[np.ndarray, "item"]) -> float | None:
    """The average precision of `pipeline.tiny.retrieval`; None if no item is present."""
    return retrieval.average_precision(scores, present) if present.any() else None


def mean_of(values: list[float | None]) -> float | None:
    """The mean of the values that are not None, if there are any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
