"""ClearCLIP (arXiv 2407.12442): tokens attend to tokens with similar queries, and nothing is added to the result."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from pipeline.teacher.attention import attend, queries_keys_values


def last_block(
    block: ResidualAttentionBlock, x: Float[Tensor, "batch token channel"], _grid: tuple[int, int]
) -> Float[Tensor, "batch token channel"]:
    """softmax(q q^T) v, without residual and MLP."""
    q, _, v = queries_keys_values(block.attn, block.ln_1(x))
    return block.attn.out_proj(attend(q, q, v))
