"""Prediction with a trained student and text features. CLIP itself is not needed."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_cache.errors import UserError
from trainer.checkpoint import Checkpoint
from trainer.losses.pixel import cosine_divisor
from trainer.segmenter import TopSeenUnseen, Vocabulary, top_seen_unseen

STRIDE = 426 / 512
"""Stride of the sliding window as a share of its side (512 and 426 in ZegCLIP's protocol)."""
MAX_ASPECT_RATIO = 16
"""Of an image: its short side is resized to the training size, so a long strip would not fit into memory."""


class Window(NamedTuple):
    """A part of an image with the student's features, which cover `padded` pixels from `top` and `left` on.

    Their dot products with text features are logits (eq. 9).
    """

    top: int
    left: int
    height: int
    width: int
    padded: tuple[int, int]
    features: Float[Tensor, "channel y x"]


class ClassLogits:
    """The logits of an image, computed for the classes that are asked for: `logits[ids]` has shape (class, y, x).

    A vocabulary may have thousands of names, whose logits at once would take gigabytes.
    """

    def __init__(self, windows: list[Window], size: tuple[int, int], text: Float[Tensor, "class channel"]) -> None:
        self._windows, self._size, self._text = windows, size, text

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of classes, height and width."""
        return len(self._text), *self._size

    @property
    def device(self) -> torch.device:
        """The student's device."""
        return self._text.device

    @torch.inference_mode()
    def __getitem__(self, ids: slice | Int[Tensor, "class"]) -> Float[Tensor, "class y x"]:
        text = self._text[ids]
        if len(self._windows) == 1:
            return self._in_window(self._windows[0], text)
        total = torch.zeros(len(text), *self._size, device=self.device)
        count = torch.zeros(self._size, device=self.device)
        for window in self._windows:
            place = (
                slice(window.top, window.top + window.height),
                slice(window.left, window.left + window.width),
            )
            total[:, *place] += self._in_window(window, text)
            count[place] += 1
        return total / count

    def _in_window(self, window: Window, text: Float[Tensor, "class channel"]) -> Float[Tensor, "class y x"]:
        logits = torch.einsum("kc,cyx->kyx", text, window.features)
        full = F.interpolate(logits[None], window.padded, mode="bilinear", align_corners=False)[0]
        return full[:, : window.height, : window.width]


class Predictor:
    """A `trainer.segmenter.Segmenter` that predicts with a trained student.

    Args:
        checkpoint: the student.
        sliding: average the logits of overlapping square windows instead of one pass over the whole image.
        vocabulary: the classes to choose from; by default the training classes.

    """

    def __init__(self, checkpoint: Checkpoint, sliding: bool = False, vocabulary: Vocabulary | None = None) -> None:
        self.checkpoint, self.sliding = checkpoint, sliding
        self.vocabulary = vocabulary or checkpoint.vocabulary
        self._text = F.normalize(self.vocabulary.text.to(checkpoint.text.device), dim=1)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> TopSeenUnseen:
        """Predict at the image's own resolution."""
        return top_seen_unseen(self.logits(image), self.vocabulary.labelled, image.shape[:2])

    @torch.inference_mode()
    def logits(self, image: UInt8[np.ndarray, "height width 3"]) -> ClassLogits:
        """Logits of the image resized for the student: its short side at the training size, its aspect ratio kept.

        Raises UserError if the image is too long a strip.
        """
        check_aspect_ratio(*image.shape[:2])
        side = self.checkpoint.size
        scale = side / min(image.shape[:2])
        height, width = (max(side, round(length * scale)) for length in image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].float().to(self._text.device)
        if self.sliding:
            starts = [(top, left) for top in window_starts(height, side) for left in window_starts(width, side)]
            windows = [
                self._window(pixels[:, :, top : top + side, left : left + side], top, left) for top, left in starts
            ]
        else:
            windows = [self._window(pixels)]
        return ClassLogits(windows, (height, width), self._text)

    def _window(self, pixels: Float[Tensor, "1 3 height width"], top: int = 0, left: int = 0) -> Window:
        network, config = self.checkpoint.network, self.checkpoint.config
        height, width = pixels.shape[2:]
        padded = F.pad(pixels, (0, -width % network.multiple, 0, -height % network.multiple), mode="replicate")
        features = network(padded)[0].float()
        if config.logits == "cosine":  # once: for every chunk of classes, this would take as long as the dot products
            features = features / cosine_divisor(features, config.tau)
        return Window(top, left, height, width, padded.shape[2:], features)


def check_aspect_ratio(height: int, width: int, prefix: str = "") -> None:
    """Raise UserError, with `prefix` before its message, if the sides differ by more than `MAX_ASPECT_RATIO`."""
    short, long = sorted((height, width))
    if long > MAX_ASPECT_RATIO * short:
        raise UserError(
            f"{prefix}{long} x {short} pixels are too long a strip; crop it to at most {MAX_ASPECT_RATIO}:1"
        )


def window_starts(length: int, side: int) -> list[int]:
    """Offsets of windows of `side` pixels along `length` >= side; the last window ends at the border."""
    stride = max(1, round(side * STRIDE))
    return sorted({min(start, length - side) for start in range(0, length - side + stride, stride)})
