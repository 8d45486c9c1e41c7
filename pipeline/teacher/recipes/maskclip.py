"""MaskCLIP (arXiv 2112.01071): no attention; each token is its own value."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from pipeline.teacher.attention import Heads, concatenated


def last_block(
    block: ResidualAttentionBlock,
    _x: Float[Tensor, "batch token channel"],
    _q: Heads,
    _k: Heads,
    v: Heads,
    _grid: tuple[int, int],
) -> Float[Tensor, "batch token channel"]:
    """out_proj(v), without residual and MLP."""
    return block.attn.out_proj(concatenated(v))
