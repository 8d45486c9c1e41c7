"""ClearCLIP (arXiv 2407.12442): tokens attend to tokens with similar queries, and nothing is added to the result."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from pipeline.teacher.attention import Heads, attend


def last_block(
    block: ResidualAttentionBlock,
    _x: Float[Tensor, "batch token channel"],
    q: Heads,
    _k: Heads,
    v: Heads,
    _grid: tuple[int, int],
) -> Float[Tensor, "batch token channel"]:
    """softmax(q q^T) v, without residual and MLP."""
    return block.attn.out_proj(attend(q, q, v))
