"""Evaluation: student and text features only; CLIP's towers take no part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.splits import Split
from trainer.checkpoint import Checkpoint
from trainer.metrics import ConfusionMatrix, Metrics, metrics
from trainer.plm import pixel_logits

GAMMA = 1.5
CLASSES_AT_ONCE = 16
STRIDE = 426 / 512
"""Stride of the sliding window as a share of its side (512 and 426 in ZegCLIP's protocol)."""


class Segments(Protocol):
    """Whatever names a class for every pixel of an image."""

    @property
    def split(self) -> Split:
        """The classes it chooses from."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """Class ids at the image's own size."""


@dataclass(frozen=True)
class Predictor:
    """Predicts a class for every pixel of an image by a trained student.

    Args:
        checkpoint: student and text features of all classes.
        gamma: added to the logits of unseen classes, against the bias towards seen ones.
        sliding: average the logits of overlapping square windows instead of one pass over the whole image.

    """

    checkpoint: Checkpoint
    gamma: float = GAMMA
    sliding: bool = False

    @property
    def split(self) -> Split:
        """The classes the student was trained for."""
        return self.checkpoint.split

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """Class ids at the image's own size."""
        return winners(self.logits(image), image.shape[:2])

    @torch.inference_mode()
    def logits(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "class y x"]:
        """Logits with gamma at the size the student sees: the ratio kept, the short side the training size."""
        side = self.checkpoint.size
        scale = side / min(image.shape[:2])
        height, width = (max(side, round(length * scale)) for length in image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].float().to(self.checkpoint.text.device)
        logits = self._slide(pixels, side) if self.sliding else self._whole(pixels)
        return favour_unseen(logits, self.split, self.gamma)

    def _whole(self, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "class height width"]:
        config, segmenter = self.checkpoint.config, self.checkpoint.segmenter
        height, width = pixels.shape[2:]
        pad = (-width % segmenter.multiple, -height % segmenter.multiple)
        padded = F.pad(pixels, (0, pad[0], 0, pad[1]), mode="replicate")
        features = segmenter(padded)[0].float()
        logits = pixel_logits(features, F.normalize(self.checkpoint.text, dim=1), config.logits, config.tau)
        full = F.interpolate(logits[None], padded.shape[2:], mode="bilinear", align_corners=False)[0]
        return full[:, :height, :width]

    def _slide(self, pixels: Float[Tensor, "1 3 height width"], side: int) -> Float[Tensor, "class height width"]:
        height, width = pixels.shape[2:]
        total = torch.zeros(len(self.checkpoint.text), height, width, device=pixels.device)
        visits = torch.zeros(height, width, device=pixels.device)
        for top in window_starts(height, side):
            for left in window_starts(width, side):
                area = (slice(top, top + side), slice(left, left + side))
                total[:, *area] += self._whole(pixels[:, :, *area])
                visits[area] += 1
        return total / visits


def favour_unseen(
    logits: Float[Tensor, "class height width"], split: Split, gamma: float
) -> Float[Tensor, "class height width"]:
    """The logits with gamma added to those of unseen classes."""
    unseen = torch.from_numpy(split.unseen_index).to(logits.device)
    return logits.index_add(0, unseen, logits.new_full((len(unseen), *logits.shape[1:]), gamma))


@torch.inference_mode()
def winners(logits: Float[Tensor, "class y x"], size: tuple[int, int]) -> Int[np.ndarray, "height width"]:
    """The class of the greatest logit at each of `size` pixels, the logits resized bilinearly."""
    best = torch.full(size, -torch.inf, device=logits.device)
    winner = torch.zeros(size, dtype=torch.long, device=logits.device)
    # a few classes at a time: all of COCO's at a photograph's own size would be gigabytes
    for start in range(0, len(logits), CLASSES_AT_ONCE):
        some = logits[None, start : start + CLASSES_AT_ONCE]
        value, index = F.interpolate(some, size, mode="bilinear", align_corners=False)[0].max(dim=0)
        better = value > best
        best, winner = torch.where(better, value, best), torch.where(better, index + start, winner)
    return winner.cpu().numpy()


def window_starts(length: int, side: int) -> list[int]:
    """Where windows of `side` pixels start along `length` >= side: at the stride, the last one flush with the end."""
    stride = max(1, round(side * STRIDE))
    return sorted({min(start, length - side) for start in range(0, length - side + stride, stride)})


def evaluate(predict: Segments, dataset: Dataset, tell: Callable[[int], None] = lambda _: None) -> Metrics:
    """Metrics over every image of a dataset that has the same classes; `tell` hears of images done.

    Raises UserError if the classes differ, an image cannot be read, or one has no labels.
    """
    split = predict.split
    if dataset.classes != split.classes:
        raise UserError(
            f"{dataset.root or dataset.name}: its {len(dataset.classes)} classes are not the {len(split.classes)} "
            "of the prediction; evaluate on the dataset it was made for"
        )
    confusion = ConfusionMatrix(len(split.classes))
    for index in range(len(dataset)):
        image, label = dataset.load(index)
        if label is None:
            raise UserError(f"{dataset.path(index)}: has no label map; evaluation needs one for every image")
        confusion.update(label, predict(image))
        tell(1)
    return metrics(confusion.counts, split.unseen_index)
