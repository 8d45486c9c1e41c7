"""Metrics of generalized zero-shot segmentation, from one confusion matrix pooled over all images."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from data_cache.datasets.base import VOID


class ConfusionMatrix:
    """Pixel counts, rows the true class and columns the predicted one; void pixels are left out of everything."""

    def __init__(self, classes: int) -> None:
        self.counts: Int[np.ndarray, "true predicted"] = np.zeros((classes, classes), np.int64)

    def update(self, label: Shaped[np.ndarray, "*pixels"], predicted: Shaped[np.ndarray, "*pixels"]) -> None:
        """Add the pixels of an image; `label` may hold 255 (void), `predicted` may not."""
        n, known = len(self.counts), label != VOID
        pairs = label[known].astype(np.int64) * n + predicted[known]
        self.counts += np.bincount(pairs, minlength=n * n).reshape(n, n)


@dataclass(frozen=True)
class Metrics:
    """Shares in 0..1; nan where no class of a kind occurs."""

    pixel_accuracy: float
    miou_seen: float
    miou_unseen: float
    hiou: float
    iou: Float[np.ndarray, "class"]


def metrics(counts: Int[np.ndarray, "true predicted"], unseen: Int[np.ndarray, "unseen"]) -> Metrics:
    """IoU a class = hits / (true + predicted - hits), nan if the union is empty; means skip nan.

    pAcc counts all labelled pixels. hIoU (eq. 13) = 2SU / (S + U), and 0 when both are 0.
    """
    hits, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = true + predicted - hits
    iou = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
    is_unseen = np.isin(np.arange(len(counts)), unseen)
    seen_mean, unseen_mean = _mean(iou[~is_unseen]), _mean(iou[is_unseen])
    both = seen_mean + unseen_mean
    hiou = 2 * seen_mean * unseen_mean / both if both > 0 else (0.0 if both == 0 else np.nan)
    accuracy = hits.sum() / true.sum() if true.sum() else np.nan
    return Metrics(float(accuracy), seen_mean, unseen_mean, float(hiou), iou)


def _mean(values: Float[np.ndarray, "class"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
