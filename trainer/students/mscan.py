"""MSCAN, the encoder of SegNeXt (arXiv 2209.08575), as an encoder for segmentation_models_pytorch.

Parameters have the names of the published checkpoints, so that `--encoder-weights mscan_b.pth` loads them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from segmentation_models_pytorch.encoders._base import EncoderMixin  # private, but smp documents it for custom encoders
from timm.layers import DropPath
from torch import Tensor, nn

STRIPS = (7, 11, 21)
LAYER_SCALE = 1e-2


class MultiScaleAttention(nn.Module):
    """Attention weights from a 5 x 5 depthwise convolution and three pairs of strip convolutions, times the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv0 = _depthwise(width, (5, 5))
        for index, length in enumerate(STRIPS):
            setattr(self, f"conv{index}_1", _depthwise(width, (1, length)))
            setattr(self, f"conv{index}_2", _depthwise(width, (length, 1)))
        self.conv3 = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        """The weighted input."""
        local = self.conv0(x)
        total = local
        for index in range(len(STRIPS)):
            horizontal, vertical = getattr(self, f"conv{index}_1"), getattr(self, f"conv{index}_2")
            total = total + vertical(horizontal(local))
        return self.conv3(total) * x


class GatedAttention(nn.Module):
    """Projection, GELU, attention, and projection, with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_1 = nn.Conv2d(width, width, 1)
        self.spatial_gating_unit = MultiScaleAttention(width)
        self.proj_2 = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        """The input plus the attended features."""
        return x + self.proj_2(self.spatial_gating_unit(nn.functional.gelu(self.proj_1(x))))


class DepthwiseConvolution(nn.Module):
    """The 3 x 3 depthwise convolution inside a block's MLP, a module of its own in the published checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = _depthwise(width, (3, 3))

    def forward(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        """The convolved input."""
        return self.dwconv(x)


class ConvolutionalMLP(nn.Module):
    """Two projections with a depthwise convolution and GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)
        self.dwconv = DepthwiseConvolution(hidden)

    def forward(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        """The MLP applied at every cell."""
        return self.fc2(nn.functional.gelu(self.dwconv(self.fc1(x))))


class Block(nn.Module):
    """Attention and MLP, each with batch norm, layer scale, stochastic depth and a residual connection."""

    def __init__(self, width: int, ratio: int, drop: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.BatchNorm2d(width), GatedAttention(width)
        self.norm2, self.mlp = nn.BatchNorm2d(width), ConvolutionalMLP(width, width * ratio)
        self.drop_path = DropPath(drop)
        self.layer_scale_1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.layer_scale_2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Float[Tensor, "batch width y x"]) -> Float[Tensor, "batch width y x"]:
        """Features after the block."""
        x = x + self.drop_path(self.layer_scale_1[:, None, None] * self.attn(self.norm1(x)))
        return x + self.drop_path(self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x)))


class Stem(nn.Module):
    """Two stride-2 convolutions from pixels to stride 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, 2, 1),
            nn.BatchNorm2d(width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, 2, 1),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch channel y x"]:
        """Features at stride 4."""
        return self.proj(x)


class Downsample(nn.Module):
    """Halves the resolution and changes the width."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(in_width, width, 3, 2, 1), nn.BatchNorm2d(width)

    def forward(self, x: Float[Tensor, "batch in_width y x"]) -> Float[Tensor, "batch width y2 x2"]:
        """Features at twice the stride."""
        return self.norm(self.proj(x))


class MSCAN(nn.Module, EncoderMixin):
    """Four stages at strides 4, 8, 16 and 32.

    Args:
        widths, depths, ratios: channels, blocks and MLP ratio of each stage.
        drop: drop path rate of the last block; the rate increases linearly from 0 in the first block.
        depth, output_stride: passed by smp, 5 and 32.

    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        ratios: Sequence[int],
        drop: float,
        depth: int = 5,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        self._depth, self._in_channels, self._output_stride = depth, 3, output_stride
        self._out_channels = [3, 0, *widths]
        drops = torch.linspace(0, drop, sum(depths)).tolist()
        for stage, (width, blocks, ratio) in enumerate(zip(widths, depths, ratios, strict=True)):
            embed = Downsample(widths[stage - 1], width) if stage else Stem(width)
            setattr(self, f"patch_embed{stage + 1}", embed)
            first = sum(depths[:stage])
            block = nn.ModuleList(Block(width, ratio, drops[first + i]) for i in range(blocks))
            setattr(self, f"block{stage + 1}", block)
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(width))
        self.apply(_initialize)

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """The image, an empty tensor for stride 2, and the features of the stages, their sides rounded up."""
        features = [x, x.new_empty(x.shape[0], 0, x.shape[2] // 2, x.shape[3] // 2)]
        for stage in range(1, self._depth):
            x = getattr(self, f"patch_embed{stage}")(x)
            for block in getattr(self, f"block{stage}"):
                x = block(x)
            x = getattr(self, f"norm{stage}")(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
            features.append(x)
        return features


def _depthwise(width: int, size: tuple[int, int]) -> nn.Conv2d:
    return nn.Conv2d(width, width, size, padding=(size[0] // 2, size[1] // 2), groups=width)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _entry(widths: Sequence[int], depths: Sequence[int], drop: float) -> dict[str, Any]:
    params = {"widths": widths, "depths": depths, "ratios": (8, 8, 4, 4), "drop": drop}
    return {"encoder": MSCAN, "pretrained_settings": {}, "params": params}


ENCODERS = {
    "mscan_t": _entry((32, 64, 160, 256), (3, 3, 5, 2), 0.1),
    "mscan_s": _entry((64, 128, 320, 512), (2, 2, 4, 2), 0.1),
    "mscan_b": _entry((64, 128, 320, 512), (3, 3, 12, 3), 0.1),
    "mscan_l": _entry((64, 128, 320, 512), (3, 5, 27, 3), 0.3),
}
"""Entries of smp's encoder registry. Pretrained weights come from a local file."""
