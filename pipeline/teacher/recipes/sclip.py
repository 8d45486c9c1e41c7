"""SCLIP (arXiv 2312.01597): tokens attend to tokens with similar queries, and to tokens with similar keys."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from pipeline.teacher.attention import attend, queries_keys_values


def last_block(
    block: ResidualAttentionBlock, x: Float[Tensor, "batch token channel"], _grid: tuple[int, int]
) -> Float[Tensor, "batch token channel"]:
    """(softmax(q q^T) + softmax(k k^T)) v, with residual and MLP."""
    q, k, v = queries_keys_values(block.attn, block.ln_1(x))
    x = x + block.ls_1(block.attn.out_proj(attend(q, q, v) + attend(k, k, v)))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
