"""SegFormer's decoder and attention with smp's parameters, computed with less work and memory."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.encoders.mix_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE_4 = 2
"""Index of an encoder's features at stride 4."""


def accelerate(network: nn.Module) -> nn.Module:
    """Replace smp's SegFormer decoder and attention layers in a network by those below, with the same parameters."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SegformerDecoder):
                setattr(parent, name, EarlyFusionDecoder(child))
            elif isinstance(child, Attention):
                setattr(parent, name, FusedAttention(child))
    return network


class EarlyFusionDecoder(nn.Module):
    """SegFormer's decoder, whose linear layers and 1x1 convolution are one product per stage, before resizing.

    Layers that mix the channels of a cell commute with bilinear resizing. The original resizes every stage to stride 4
    first, and mixes the channels of all of them there.
    """

    def __init__(self, decoder: SegformerDecoder) -> None:
        super().__init__()
        self.mlp_stage, self.fuse_stage = decoder.mlp_stage, decoder.fuse_stage

    def forward(self, features: Sequence[Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch channel y x"]:
        """The fused features at stride 4, from those of an encoder at strides 1, 2, 4 and so on.

        An encoder without a stage of stride 2 has no channels there.
        """
        stages = [index for index in reversed(range(1, len(features))) if features[index].shape[1]]
        fuse, norm, activation = self.fuse_stage
        parts = fuse.weight[:, :, 0, 0].chunk(len(stages), dim=1)
        fused = torch.stack([part @ mlp.linear.bias for part, mlp in zip(parts, self.mlp_stage, strict=True)]).sum(0)
        fused = fused[:, None, None]
        for index, part, mlp in zip(stages, parts, self.mlp_stage, strict=True):
            mixed = F.linear(features[index].permute(0, 2, 3, 1), part @ mlp.linear.weight).permute(0, 3, 1, 2)
            if index != STRIDE_4:
                mixed = F.interpolate(mixed, features[STRIDE_4].shape[2:], mode="bilinear", align_corners=False)
            fused = fused + mixed
        return activation(norm(fused))


class FusedAttention(nn.Module):
    """Attention of MiT, as one fused operation that does not store the attention weights."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        self.q, self.kv, self.proj = attention.q, attention.kv, attention.proj
        self.sr, self.norm = attention.sr, attention.norm

    def forward(self, x: Float[Tensor, "batch token channel"], height: int, width: int) -> Tensor:
        """The output of each token. Keys and values are those of the cells of a coarser grid (`sr`)."""
        grid = x.mT.unflatten(2, (height, width))
        key, value = self.kv(self.norm(self.sr(grid).flatten(2).mT)).chunk(2, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q(x), key, value))
        return self.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
