"""Prediction with a trained student and text features. CLIP itself is not needed."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data_cache.errors import UserError
from trainer.checkpoint import Checkpoint
from trainer.losses.pixel import pixel_logits
from trainer.segmenter import TopSeenUnseen, Vocabulary, top_seen_unseen

STRIDE = 426 / 512
"""Stride of the sliding window as a share of its side (512 and 426 in ZegCLIP's protocol)."""
MAX_ASPECT_RATIO = 16
"""Of an image: its short side is resized to the training size, so a long strip would not fit into memory."""


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
    def logits(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "class y x"]:
        """Logits of the image resized for the student: its short side at the training size, its aspect ratio kept.

        Raises UserError if the image is too long a strip.
        """
        check_aspect_ratio(*image.shape[:2])
        side = self.checkpoint.size
        scale = side / min(image.shape[:2])
        height, width = (max(side, round(length * scale)) for length in image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].float().to(self._text.device)
        return self._slide(pixels, side) if self.sliding else self._whole(pixels)

    def _whole(self, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "class height width"]:
        config, network = self.checkpoint.config, self.checkpoint.network
        height, width = pixels.shape[2:]
        padded = F.pad(pixels, (0, -width % network.multiple, 0, -height % network.multiple), mode="replicate")
        features = network(padded)[0].float()
        logits = pixel_logits(features, self._text, config.logits, config.tau)
        full = F.interpolate(logits[None], padded.shape[2:], mode="bilinear", align_corners=False)[0]
        return full[:, :height, :width]

    def _slide(self, pixels: Float[Tensor, "1 3 height width"], side: int) -> Float[Tensor, "class height width"]:
        height, width = pixels.shape[2:]
        total = torch.zeros(len(self._text), height, width, device=pixels.device)
        count = torch.zeros(height, width, device=pixels.device)
        for top in window_starts(height, side):
            for left in window_starts(width, side):
                window = (slice(top, top + side), slice(left, left + side))
                total[:, *window] += self._whole(pixels[:, :, *window])
                count[window] += 1
        return total / count


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
