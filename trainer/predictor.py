"""A trained student predicts: student and text features only, without CLIP's towers."""

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
LONGEST = 16
"""Greatest ratio of an image's sides: the student sees it with its short side at the training size."""


class Predictor:
    """Predicts a class for every pixel of an image with a trained student: a `trainer.segmenter.Segmenter`.

    Args:
        checkpoint: the student.
        sliding: average the logits of overlapping square windows instead of one pass over the whole image.
        vocabulary: the classes to choose from; those of the training by default.

    """

    def __init__(self, checkpoint: Checkpoint, sliding: bool = False, vocabulary: Vocabulary | None = None) -> None:
        self.checkpoint, self.sliding = checkpoint, sliding
        self.vocabulary = vocabulary or checkpoint.vocabulary
        self._text = F.normalize(self.vocabulary.text.to(checkpoint.text.device), dim=1)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> TopSeenUnseen:
        """The best labelled and the best unlabelled class at the image's own pixels."""
        return top_seen_unseen(self.logits(image), self.vocabulary.labelled, image.shape[:2])

    @torch.inference_mode()
    def logits(self, image: UInt8[np.ndarray, "height width 3"]) -> Float[Tensor, "class y x"]:
        """Logits at the size the student sees: aspect ratio kept, short side at the training size.

        Raises UserError if the image is such a long strip that its logits would not fit into memory.
        """
        check_strip(*image.shape[:2])
        side = self.checkpoint.size
        scale = side / min(image.shape[:2])
        height, width = (max(side, round(length * scale)) for length in image.shape[:2])
        resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        pixels = torch.from_numpy(resized).permute(2, 0, 1)[None].float().to(self._text.device)
        return self._slide(pixels, side) if self.sliding else self._whole(pixels)

    def _whole(self, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "class height width"]:
        config, network = self.checkpoint.config, self.checkpoint.network
        height, width = pixels.shape[2:]
        pad = (-width % network.multiple, -height % network.multiple)
        padded = F.pad(pixels, (0, pad[0], 0, pad[1]), mode="replicate")
        features = network(padded)[0].float()
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


def check_strip(height: int, width: int, lead: str = "") -> None:
    """Raise UserError, which begins with `lead`, for an image whose sides differ by more than the factor `LONGEST`."""
    short, long = sorted((height, width))
    if long > LONGEST * short:
        raise UserError(f"{lead}{long} x {short} pixels are too long a strip; crop it to at most {LONGEST}:1")


def window_starts(length: int, side: int) -> list[int]:
    """Where windows of `side` pixels start along `length` >= side: at the stride, the last one flush with the end."""
    stride = max(1, round(side * STRIDE))
    return sorted({min(start, length - side) for start in range(0, length - side + stride, stride)})
