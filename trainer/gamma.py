"""A gamma chosen without any unseen label: from what it costs on the labelled pixels of training images."""

from collections.abc import Callable

import numpy as np

from data_cache.datasets.base import VOID, Dataset
from data_cache.errors import UserError
from trainer.evaluate import Segments

GRID = np.arange(0, 5.01, 0.25)
KEPT = 0.98
"""Share of the seen classes' mIoU that is to be kept (docs/decisions.md)."""


def pick_gamma(segments: Segments, images: Dataset, tell: Callable[[int], None] = lambda _: None) -> float:
    """The greatest gamma of `GRID` that costs a student next to nothing of what it knows.

    On the training images, over pixels that have a seen label, mIoU of the seen classes must be at least `KEPT` of its
    greatest over the grid; a pixel given to an unseen class is a miss. All other pixels, and so all labels of unseen
    classes, are left out.

    Images without a label map are left out. Raises UserError if an image cannot be read, or if there is no seen pixel
    that the student gets right: nothing can be learned from such images.
    """
    split, n = segments.words.split, len(GRID)
    rank, classes = split.seen_rank(), len(split.seen)
    hits, said, true = (np.zeros((classes, n + 1)) for _ in range(3))
    for index in range(len(images)):
        image, label = images.load(index)
        if label is None:
            continue
        found, wanted = segments(image), rank[label]
        known = wanted != VOID
        # a new class wins from this place of the grid on
        turn = np.searchsorted(GRID, -found.lead[known], side="right")
        wanted, ours = wanted[known], rank[found.familiar[known]]
        right = ours == wanted
        for counts, rows, turns in ((true, wanted, turn), (said, ours, turn), (hits, ours[right], turn[right])):
            places = rows.astype(np.int64) * (n + 1) + turns
            counts += np.bincount(places, minlength=counts.size).reshape(counts.shape)
        tell(1)
    total = true.sum(axis=1, keepdims=True)
    # at place g a familiar class stands wherever its turn to give way comes later
    hits, said = (counts.sum(axis=1, keepdims=True) - counts.cumsum(axis=1)[:, :n] for counts in (hits, said))
    if not hits.any():
        raise UserError(
            "--pick-gamma: not one seen pixel of these images is named right; use more of them, or train on"
        )
    miou = (hits / np.maximum(total + said - hits, 1))[total[:, 0] > 0].mean(axis=0)
    return float(GRID[np.flatnonzero(miou >= KEPT * miou.max())[-1]])
