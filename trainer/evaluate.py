"""Evaluation of a segmenter on labelled images, and the choice of gamma without unseen labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt, UInt8

from data_cache.callbacks import Progress, ignore
from data_cache.datasets.base import VOID, Dataset
from data_cache.errors import UserError
from data_cache.survey import absent_classes
from trainer.config import GAMMA
from trainer.metrics import ConfusionMatrix, Metrics, metrics
from trainer.predictor import check_aspect_ratio
from trainer.segmenter import Segmenter, Vocabulary

GRID = np.arange(0, 5.01, 0.25)
"""The gammas that `pick_gamma` chooses from."""
KEPT = 0.98
"""Fraction of the seen classes' mIoU that `pick_gamma` keeps (docs/decisions/method.md)."""


@dataclass(frozen=True)
class Evaluation:
    """Pixel counts pooled over images, for each gamma.

    Args:
        vocabulary: the classes.
        counts: the confusion matrix of each gamma.
        images: number of images counted.
        failures: for each other image, by name, why it could not be evaluated.

    """

    vocabulary: Vocabulary
    counts: Mapping[float, Int[np.ndarray, "true predicted"]]
    images: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)

    def at(self, gamma: float) -> Metrics:
        """Metrics at a gamma, with S and U from the split of the evaluated dataset, as in the paper."""
        return metrics(self.counts[gamma], self.vocabulary.split.unseen_index)

    def by_training_labels(self, gamma: float) -> Metrics:
        """Metrics at a gamma, where S are the classes that had labels in training and U all others."""
        return metrics(self.counts[gamma], np.flatnonzero(~self.vocabulary.labelled))

    def as_json(self) -> dict[str, Any]:
        """The output of `--json`: the first gamma at the top level; if there are several, all of them under `sweep`."""
        first, classes = next(iter(self.counts)), self.vocabulary.split.classes
        output = {**self.at(first).as_json(first, classes), "unseen": list(self.vocabulary.split.unseen)}
        if len(self.counts) > 1:
            output["sweep"] = [self.at(gamma).as_json(gamma) for gamma in self.counts]
        if self.vocabulary.transferred:
            output["by_training_vocabulary"] = self.by_training_labels(first).as_json(first)
        if self.failures:
            output["failures"] = dict(self.failures)
        return output

    @property
    def warnings(self) -> list[str]:
        """A warning if classes are left out of the means because no label map contains them."""
        true = next(iter(self.counts.values())).sum(axis=1)
        absent = absent_classes(true, self.vocabulary.split.classes, self.images)
        return [absent] if absent else []

    def check(self) -> None:
        """Raise UserError if an image could not be evaluated."""
        if self.failures:
            raise UserError(
                f"{len(self.failures)} of {self.images + len(self.failures)} images could not be evaluated, and the "
                "metrics cover only the others; fix them and evaluate again"
            )


def evaluate(
    segmenter: Segmenter, dataset: Dataset, gammas: Sequence[float] = (GAMMA,), progress: Progress = ignore
) -> Evaluation:
    """Predict every image of a dataset once and count its pixels for each gamma.

    An image that cannot be read is not counted but reported in `failures`. `progress` counts images.

    Raises UserError if the dataset has other classes, an image has no label map, or no image can be read.
    """
    classes = segmenter.vocabulary.split.classes
    if dataset.classes != classes:
        raise UserError(
            f"{dataset.root or dataset.name}: its {len(dataset.classes)} classes differ from the {len(classes)} "
            "classes of the predictions; evaluate on the dataset that they were made for"
        )
    check_labelled(dataset)
    confusion = {gamma: ConfusionMatrix(len(classes)) for gamma in gammas}
    failures: dict[str, str] = {}
    for index in range(len(dataset)):
        try:
            image, label = load_labelled(dataset, index)
        except UserError as error:
            failures[dataset.ids[index]] = str(error)
        else:
            prediction = segmenter(image)
            for gamma, matrix in confusion.items():
                matrix.update(label, prediction.at(gamma))
        progress(1)
    if len(failures) == len(dataset):
        first = next(iter(failures.values()))
        raise UserError(f"none of the {len(dataset)} images can be evaluated; the first: {first}")
    counts = {gamma: matrix.counts for gamma, matrix in confusion.items()}
    return Evaluation(segmenter.vocabulary, counts, len(dataset) - len(failures), failures)


def pick_gamma(segmenter: Segmenter, images: Dataset, progress: Progress = ignore) -> float:
    """The greatest gamma of `GRID` that costs a student almost no accuracy on pixels with a seen label.

    On training images, the mIoU of the seen classes must stay at least `KEPT` of its maximum over the grid, where a
    pixel predicted as an unseen class is a miss. All other pixels are ignored, so no label of an unseen class is used.
    Images that have no label map or cannot be read are skipped.

    Raises UserError if the student predicts no seen pixel correctly, because then every gamma is equally good.
    """
    split, n = segmenter.vocabulary.split, len(GRID)
    rank, classes = split.seen_rank(), len(split.seen)
    hits, predicted, true = (np.zeros((classes, n + 1)) for _ in range(3))
    for index in range(len(images)):
        try:
            image, label = load_labelled(images, index)
        except UserError:
            continue
        prediction, target = segmenter(image), rank[label]
        valid = target != VOID
        # from this index of the grid on, an unseen class is predicted
        flip = np.searchsorted(GRID, -prediction.margin[valid], side="right")
        target, seen = target[valid], rank[prediction.labelled[valid]]
        hit = seen == target
        for counts, ranks, flips in ((true, target, flip), (predicted, seen, flip), (hits, seen[hit], flip[hit])):
            cells = ranks.astype(np.int64) * (n + 1) + flips
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        progress(1)
    total = true.sum(axis=1, keepdims=True)
    # at index g of the grid, a seen class is still predicted for all pixels that flip later
    hits, predicted = (counts.sum(axis=1, keepdims=True) - counts.cumsum(axis=1)[:, :n] for counts in (hits, predicted))
    if not hits.any():
        raise UserError(
            "--pick-gamma: no seen pixel of these images is predicted correctly; use more images, or train longer"
        )
    miou = (hits / np.maximum(total + predicted - hits, 1))[total[:, 0] > 0].mean(axis=0)
    return float(GRID[np.flatnonzero(miou >= KEPT * miou.max())[-1]])


def check_labelled(dataset: Dataset) -> None:
    """Raise UserError if an image of a dataset has no label map. No image is read."""
    if missing := [index for index in range(len(dataset)) if not dataset.has_label(index)]:
        raise UserError(
            f"{len(missing)} of {len(dataset)} images have no label map, the first is {dataset.path(missing[0])}; "
            "evaluation needs one for every image"
        )


def load_labelled(
    dataset: Dataset, index: int
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt[np.ndarray, "height width"]]:
    """Read an image and its label map. Raises UserError if it has none, or if the image is too long a strip."""
    image, label = dataset.load(index)
    if label is None:
        raise UserError(f"{dataset.path(index)}: has no label map; evaluation needs one for every image")
    check_aspect_ratio(*image.shape[:2], f"{dataset.path(index)}: ")
    return image, label
