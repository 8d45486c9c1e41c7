"""SCLIP (arXiv 2312.01597): tokens attend to tokens with similar queries, and to tokens with similar keys."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor

from pipeline.teacher.attention import Heads, attend, with_residual_and_mlp


def last_block(
    block: ResidualAttentionBlock,
    x: Float[Tensor, "batch token channel"],
    q: Heads,
    k: Heads,
    v: Heads,
    _grid: tuple[int, int],
) -> Float[Tensor, "batch token channel"]:
    """(softmax(q q^T) + softmax(k k^T)) v, with residual and MLP."""
    return with_residual_and_mlp(block, x, attend(q, q, v) + attend(k, k, v))
