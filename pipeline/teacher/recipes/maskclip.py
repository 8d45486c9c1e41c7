"""MaskCLIP (arXiv 2112.01071): no attention; each token is its own value."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional as F


def last_block(
    block: ResidualAttentionBlock, x: Float[Tensor, "batch token channel"], _grid: tuple[int, int]
) -> Float[Tensor, "batch token channel"]:
    """out_proj(v), without residual and MLP."""
    channels = x.shape[-1]
    weight, bias = block.attn.in_proj_weight[2 * channels :], block.attn.in_proj_bias[2 * channels :]
    return block.attn.out_proj(F.linear(block.ln_1(x), weight, bias))
