"""Metrics of generalized zero-shot segmentation, from one confusion matrix pooled over all images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, Shaped

from data_cache.datasets.base import void_of


class ConfusionMatrix:
    """Pixel counts by true class (rows) and predicted class (columns). Void pixels are not counted."""

    def __init__(self, classes: int) -> None:
        self.counts: Int[np.ndarray, "true predicted"] = np.zeros((classes, classes), np.int64)

    def update(self, label: Shaped[np.ndarray, "*pixels"], predicted: Shaped[np.ndarray, "*pixels"]) -> None:
        """Add the pixels of an image. `label` may contain void (`void_of`), `predicted` may not."""
        n, valid = len(self.counts), label != void_of(label)
        pairs = label[valid].astype(np.int64) * n + predicted[valid]
        self.counts += np.bincount(pairs, minlength=n * n).reshape(n, n)


@dataclass(frozen=True)
class Metrics:
    """Fractions in 0..1; nan where no class of that kind occurs."""

    pixel_accuracy: float
    miou_seen: float
    miou_unseen: float
    hiou: float
    miou: float
    iou: Float[np.ndarray, "class"]

    COLUMNS: ClassVar = {"pAcc": "pAcc", "mIoU_S": "mIoU(S)", "mIoU_U": "mIoU(U)", "hIoU": "hIoU"}
    """The metrics of the paper's tables, with their titles."""
    ALL_COLUMNS: ClassVar = {"mIoU": "mIoU", **COLUMNS}

    @property
    def summary(self) -> dict[str, float]:
        """The four metrics that papers report, by their names in JSON."""
        values = (self.pixel_accuracy, self.miou_seen, self.miou_unseen, self.hiou)
        return dict(zip(self.COLUMNS, values, strict=True))

    @property
    def all(self) -> dict[str, float]:
        """The mIoU of all classes and the four metrics by name."""
        return {"mIoU": self.miou, **self.summary}

    def as_json(self, gamma: float, classes: Sequence[str] = ()) -> dict[str, Any]:
        """The output of `--json`, with the IoU of each class if `classes` is given. A nan becomes null."""
        output = {**_nullable(self.all), "gamma": gamma}
        if classes:
            output["per_class"] = _nullable(dict(zip(classes, self.iou.tolist(), strict=True)))
        return output

    def __str__(self) -> str:
        """The mIoU of all classes and the four metrics in percent, on one line."""
        return "  ".join(f"{self.ALL_COLUMNS[name]} {100 * value:.1f}" for name, value in self.all.items())


def metrics(counts: Int[np.ndarray, "true predicted"], unseen: Int[np.ndarray, "unseen"]) -> Metrics:
    """Metrics of a confusion matrix, given the indices of the unseen classes.

    The IoU of a class is nan if its union is empty; means skip nan. mIoU, over seen and unseen classes alike, also
    skips classes that are predicted but have no labelled pixel, as Detectron2's evaluation does. pAcc is over all
    labelled pixels. hIoU (eq. 13) is 2SU / (S + U), and 0 if both are 0.
    """
    intersection, true, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = true + predicted - intersection
    iou = np.where(union > 0, intersection / np.maximum(union, 1), np.nan)
    is_unseen = np.isin(np.arange(len(counts)), unseen)
    seen_mean, unseen_mean = _mean(iou[~is_unseen]), _mean(iou[is_unseen])
    total = seen_mean + unseen_mean
    hiou = 2 * seen_mean * unseen_mean / total if total > 0 else (0.0 if total == 0 else np.nan)
    accuracy = intersection.sum() / true.sum() if true.sum() else np.nan
    return Metrics(float(accuracy), seen_mean, unseen_mean, float(hiou), _mean(iou[true > 0]), iou)


def mean_and_std(values: Sequence[float] | Float[np.ndarray, "run"], sign: str = "") -> str:
    """Mean and sample standard deviation of fractions in percent, such as 61.2 ± 0.5; the mean of a single one.

    With "+" as `sign`, as in f-strings, positive means have a sign, too.
    """
    mean = f"{100 * np.mean(values):{sign}.1f}"
    return f"{mean} ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def _nullable(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _mean(values: Float[np.ndarray, "class"]) -> float:
    valid = values[~np.isnan(values)]
    return float(valid.mean()) if len(valid) else float("nan")
