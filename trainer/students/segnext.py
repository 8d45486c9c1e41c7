"""SegNeXt's decoder (arXiv 2209.08575): three stages concatenated, squeezed, and refined by Hamburger (2109.04553)."""

import torch
from jaxtyping import Float
from segmentation_models_pytorch.base import SegmentationHead, SegmentationModel
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 3
RANK, STEPS, STEPS_AT_INFERENCE = 16, 6, 7
WIDTHS, WIDTH = {"mscan_t": 256, "mscan_s": 256, "mscan_l": 1024}, 512
"""Channels of the decoder for each encoder, as in mmsegmentation; 512 for mscan_b and all others."""


class LowRank(nn.Module):
    """Non-negative matrix factorization: approximates the input by a low-rank product with multiplicative updates.

    The updates always start from the same random bases, which are stored with the weights. The published decoder draws
    new bases at every call, so its predictions are not reproducible.
    """

    bases: Float[Tensor, "width rank"]

    def __init__(self, width: int, rank: int = RANK) -> None:
        super().__init__()
        self.register_buffer("bases", F.normalize(torch.rand(width, rank), dim=0))

    def forward(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        """The approximation of a non-negative input, computed in float32."""
        if torch.amp.is_autocast_available(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return self._approximate(x.float()).to(x.dtype)
        return self._approximate(x.float()).to(x.dtype)

    def _approximate(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        flat = x.flatten(2)
        bases = self.bases.float().expand(x.shape[0], -1, -1)
        coefficients = (flat.mT @ bases).softmax(dim=2)
        for _ in range(STEPS if self.training else STEPS_AT_INFERENCE):
            coefficients = _update(flat.mT, coefficients, bases)
            bases = _update(flat, bases, coefficients)
        coefficients = _update(flat.mT, coefficients, bases)
        return (bases @ coefficients.mT).view(x.shape)


def _update(
    target: Float[Tensor, "batch row column"],
    factor: Float[Tensor, "batch row rank"],
    other: Float[Tensor, "batch column rank"],
) -> Float[Tensor, "batch row rank"]:
    """One multiplicative update of `factor` so that factor @ other.mT approaches `target` (Lee and Seung)."""
    return factor * (target @ other) / (factor @ (other.mT @ other) + 1e-6)


class SegNeXtDecoder(nn.Module):
    """Features at stride 8 from the encoder's stages at strides 8, 16 and 32."""

    def __init__(self, encoder_channels: list[int], width: int) -> None:
        super().__init__()
        self.squeeze = _projection(sum(encoder_channels[-STAGES:]), width)
        self.ham_in = nn.Conv2d(width, width, 1)
        self.ham = LowRank(width)
        self.ham_out = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(32, width))
        self.align = _projection(width, width)
        self.dropout = nn.Dropout2d(0.1)

    def forward(self, features: list[Tensor]) -> Float[Tensor, "batch width y x"]:
        """The decoded features."""
        size = features[-STAGES].shape[2:]
        stages = [F.interpolate(f, size, mode="bilinear", align_corners=False) for f in features[-STAGES:]]
        x = self.squeeze(torch.cat(stages, dim=1))
        x = F.relu(x + self.ham_out(self.ham(F.relu(self.ham_in(x)))))
        return self.dropout(self.align(x))


class SegNeXt(SegmentationModel):
    """An smp model: any smp encoder of depth 5 (MSCAN is the published one) with SegNeXt's decoder."""

    def __init__(self, encoder_name: str, encoder_weights: str | None, classes: int) -> None:
        super().__init__()
        self.encoder = get_encoder(encoder_name, weights=encoder_weights)
        width = WIDTHS.get(encoder_name, WIDTH)
        self.decoder = SegNeXtDecoder(list(self.encoder.out_channels), width)
        self.segmentation_head = SegmentationHead(width, classes, kernel_size=1, upsampling=8)
        self.classification_head = None
        self.initialize()


def _projection(in_width: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_width, width, 1, bias=False), nn.GroupNorm(32, width), nn.ReLU())
