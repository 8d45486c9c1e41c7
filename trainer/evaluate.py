"""Evaluation: student and text features only; CLIP's towers take no part."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from trainer.checkpoint import Checkpoint
from trainer.contest import Contest, contest
from trainer.metrics import ConfusionMatrix, Metrics, metrics
from trainer.plm import pixel_logits
from trainer.words import Words

GAMMA = 1.5
"""Added to the logits of unseen classes in the paper, against the bias towards seen ones."""
STRIDE = 426 / 512
"""Stride of the sliding window as a share of its side (512 and 426 in ZegCLIP's protocol)."""


class Segments(Protocol):
    """Whatever names a class for every pixel of an image."""

    @property
    def words(self) -> Words:
        """The classes it chooses from."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Contest:
        """The best familiar and the best new class at the image's own pixels."""


class Predictor:
    """Predicts a class for every pixel of an image by a trained student.

    Args:
        checkpoint: the student.
        sliding: average the logits of overlapping square windows instead of one pass over the whole image.
        words: the classes to choose from; those of the training by default.

    """

    def __init__(self, checkpoint: Checkpoint, sliding: bool = False, words: Words | None = None) -> None:
        self.checkpoint, self.sliding = checkpoint, sliding
        self.words = words or checkpoint.words
        self._text = F.normalize(self.words.text.to(checkpoint.text.device), dim=1)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Contest:
        """The best familiar and the best new class at the image's own pixels."""
        return contest(self.logits(image), self.words.familiar, image.shape[:2])

    @torch.inference_mode()
    def logits(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "class y x"]:
        """Logits at the size the student sees: the ratio kept, the short side the training size."""
        side = self.checkpoint.size
        scale = side / min(image.shape[:2])
        height, width = (max(side, round(length * scale)) for length in image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].float().to(self._text.device)
        return self._slide(pixels, side) if self.sliding else self._whole(pixels)

    def _whole(self, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "class height width"]:
        config, segmenter = self.checkpoint.config, self.checkpoint.segmenter
        height, width = pixels.shape[2:]
        pad = (-width % segmenter.multiple, -height % segmenter.multiple)
        padded = F.pad(pixels, (0, pad[0], 0, pad[1]), mode="replicate")
        features = segmenter(padded)[0].float()
        logits = pixel_logits(features, self._text, config.logits, config.tau)
        full = F.interpolate(logits[None], padded.shape[2:], mode="bilinear", align_corners=False)[0]
        return full[:, :height, :width]

    def _slide(self, pixels: Float[Tensor, "1 3 height width"], side: int) -> Float[Tensor, "class height width"]:
        height, width = pixels.shape[2:]
        total = torch.zeros(len(self._text), height, width, device=pixels.device)
        visits = torch.zeros(height, width, device=pixels.device)
        for top in window_starts(height, side):
            for left in window_starts(width, side):
                area = (slice(top, top + side), slice(left, left + side))
                total[:, *area] += self._whole(pixels[:, :, *area])
                visits[area] += 1
        return total / visits


def window_starts(length: int, side: int) -> list[int]:
    """Where windows of `side` pixels start along `length` >= side: at the stride, the last one flush with the end."""
    stride = max(1, round(side * STRIDE))
    return sorted({min(start, length - side) for start in range(0, length - side + stride, stride)})


@dataclass(frozen=True)
class Evaluation:
    """Pooled pixel counts of a prediction, by gamma."""

    words: Words
    counts: Mapping[float, Int[np.ndarray, "true predicted"]]

    def at(self, gamma: float) -> Metrics:
        """The metrics at one of its gammas, S and U by the split of the evaluated dataset (the paper's reading)."""
        return metrics(self.counts[gamma], self.words.split.unseen_index)

    def by_familiarity(self, gamma: float) -> Metrics:
        """The metrics at one of its gammas, S the classes that had labels in training and U all others."""
        return metrics(self.counts[gamma], np.flatnonzero(~self.words.familiar))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the first gamma on top, all of several under `sweep`."""
        first, classes = next(iter(self.counts)), self.words.split.classes
        told = self.at(first).as_json(first, classes)
        if len(self.counts) > 1:
            told["sweep"] = [self.at(gamma).as_json(gamma) for gamma in self.counts]
        if self.words.transferred:
            told["by_training_vocabulary"] = self.by_familiarity(first).as_json(first)
        return told


def evaluate(
    predict: Segments,
    dataset: Dataset,
    gammas: Sequence[float] = (GAMMA,),
    tell: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Predict every image of a dataset that has the same classes, once for all gammas; `tell` hears of images done.

    Raises UserError if the classes differ, an image cannot be read, or one has no labels.
    """
    classes = predict.words.split.classes
    if dataset.classes != classes:
        raise UserError(
            f"{dataset.root or dataset.name}: its {len(dataset.classes)} classes are not the {len(classes)} "
            "of the prediction; evaluate on the dataset it was made for"
        )
    confusion = {gamma: ConfusionMatrix(len(classes)) for gamma in gammas}
    for index in range(len(dataset)):
        image, label = labelled(dataset, index)
        found = predict(image)
        for gamma, one in confusion.items():
            one.update(label, found.at(gamma))
        tell(1)
    return Evaluation(predict.words, {gamma: one.counts for gamma, one in confusion.items()})


def labelled(
    dataset: Dataset, index: int
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"]]:
    """An image and its label map; raise UserError without one."""
    image, label = dataset.load(index)
    if label is None:
        raise UserError(f"{dataset.path(index)}: has no label map; evaluation needs one for every image")
    return image, label
