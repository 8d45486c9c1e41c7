"""Evaluation of a segmenter on labelled images, and the choice of gamma without unseen labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from data_cache.callbacks import Progress, ignore
from data_cache.datasets.base import VOID, Dataset
from data_cache.errors import UserError
from data_cache.survey import absent_classes
from trainer.config import GAMMA
from trainer.metrics import ConfusionMatrix, Metrics, metrics
from trainer.predictor import check_strip
from trainer.segmenter import Segmenter, Vocabulary

GRID = np.arange(0, 5.01, 0.25)
"""The gammas that `pick_gamma` chooses from."""
KEPT = 0.98
"""Share of the seen classes' mIoU that `pick_gamma` keeps (docs/decisions/method.md)."""


@dataclass(frozen=True)
class Evaluation:
    """Pooled pixel counts of a prediction, by gamma.

    Args:
        vocabulary: the classes.
        counts: a confusion matrix for each gamma.
        images: how many are counted.
        failures: the reasons why the others are not, by image name.

    """

    vocabulary: Vocabulary
    counts: Mapping[float, Int[np.ndarray, "true predicted"]]
    images: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)

    def at(self, gamma: float) -> Metrics:
        """The metrics at one of its gammas, S and U by the split of the evaluated dataset (the paper's reading)."""
        return metrics(self.counts[gamma], self.vocabulary.split.unseen_index)

    def by_training_labels(self, gamma: float) -> Metrics:
        """The metrics at one of its gammas, S the classes that had labels in training and U all others."""
        return metrics(self.counts[gamma], np.flatnonzero(~self.vocabulary.labelled))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the first gamma at the top level, all of several gammas under `sweep`."""
        first, classes = next(iter(self.counts)), self.vocabulary.split.classes
        output = self.at(first).as_json(first, classes)
        if len(self.counts) > 1:
            output["sweep"] = [self.at(gamma).as_json(gamma) for gamma in self.counts]
        if self.vocabulary.transferred:
            output["by_training_vocabulary"] = self.by_training_labels(first).as_json(first)
        if self.failures:
            output["failures"] = dict(self.failures)
        return output

    @property
    def warnings(self) -> list[str]:
        """A sentence if classes are left out of the means because no label map has them."""
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
    """Predict every image of a dataset with the same classes, once for all gammas; `progress` counts images.

    An image that cannot be read is left out of the counts and named in `failures`.

    Raises UserError if the classes differ, an image has no label map, or no image can be read.
    """
    classes = segmenter.vocabulary.split.classes
    if dataset.classes != classes:
        raise UserError(
            f"{dataset.root or dataset.name}: its {len(dataset.classes)} classes differ from the {len(classes)} "
            "of the prediction; evaluate on the dataset it was made for"
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
            predicted = segmenter(image)
            for gamma, matrix in confusion.items():
                matrix.update(label, predicted.at(gamma))
        progress(1)
    if len(failures) == len(dataset):
        first = next(iter(failures.values()))
        raise UserError(f"none of the {len(dataset)} images can be evaluated; the first: {first}")
    counts = {gamma: matrix.counts for gamma, matrix in confusion.items()}
    return Evaluation(segmenter.vocabulary, counts, len(dataset) - len(failures), failures)


def pick_gamma(segmenter: Segmenter, images: Dataset, progress: Progress = ignore) -> float:
    """The greatest gamma of `GRID` that costs a student almost none of its accuracy on labelled pixels.

    On training images, over pixels with a seen label, the mIoU of the seen classes must be at least `KEPT` of its
    maximum over the grid; a pixel predicted as an unseen class is a miss. All other pixels, and thus all labels of
    unseen classes, are left out, as are images that have no label map or cannot be read.

    Raises UserError if the student predicts no seen pixel correctly: such images say nothing about gamma.
    """
    split, n = segmenter.vocabulary.split, len(GRID)
    rank, classes = split.seen_rank(), len(split.seen)
    hits, predicted, true = (np.zeros((classes, n + 1)) for _ in range(3))
    for index in range(len(images)):
        try:
            image, label = load_labelled(images, index)
        except UserError:
            continue
        found, target = segmenter(image), rank[label]
        known = target != VOID
        # from this position of the grid on, an unseen class wins
        flip = np.searchsorted(GRID, -found.margin[known], side="right")
        target, ours = target[known], rank[found.labelled[known]]
        hit = ours == target
        for counts, rows, flips in ((true, target, flip), (predicted, ours, flip), (hits, ours[hit], flip[hit])):
            cells = rows.astype(np.int64) * (n + 1) + flips
            counts += np.bincount(cells, minlength=counts.size).reshape(counts.shape)
        progress(1)
    total = true.sum(axis=1, keepdims=True)
    # at position g a seen class is still predicted wherever its flip comes later
    hits, predicted = (counts.sum(axis=1, keepdims=True) - counts.cumsum(axis=1)[:, :n] for counts in (hits, predicted))
    if not hits.any():
        raise UserError(
            "--pick-gamma: not one seen pixel of these images is predicted correctly; use more of them, or train longer"
        )
    miou = (hits / np.maximum(total + predicted - hits, 1))[total[:, 0] > 0].mean(axis=0)
    return float(GRID[np.flatnonzero(miou >= KEPT * miou.max())[-1]])


def check_labelled(dataset: Dataset) -> None:
    """Raise UserError if images of a dataset have no label map, without reading any."""
    if missing := [index for index in range(len(dataset)) if not dataset.has_label(index)]:
        raise UserError(
            f"{len(missing)} of {len(dataset)} images have no label map, the first is {dataset.path(missing[0])}; "
            "evaluation needs one for every image"
        )


def load_labelled(
    dataset: Dataset, index: int
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]:
    """An image that a student can take, and its label map. Raises UserError, naming the image, if there is none."""
    image, label = dataset.load(index)
    if label is None:
        raise UserError(f"{dataset.path(index)}: has no label map; evaluation needs one for every image")
    check_strip(*image.shape[:2], f"{dataset.path(index)}: ")
    return image, label
