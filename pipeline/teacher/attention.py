"""Parts of a vision transformer's last block, from which dense recipes are built."""

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

Heads = Float[Tensor, "batch head token width"]


def queries_keys_values(attention: nn.MultiheadAttention, y: Float[Tensor, "batch token channel"]) -> list[Heads]:
    """Queries, keys and values of each head."""
    projected = F.linear(y, attention.in_proj_weight, attention.in_proj_bias)
    return [part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)]


def attend(
    queries: Heads, keys: Heads, values: Heads, bias: Float[Tensor, "token token"] | None = None
) -> Float[Tensor, "batch token channel"]:
    """softmax(q k^T / sqrt(width) + bias) v, the heads concatenated."""
    return concatenated(F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias))


def concatenated(heads: Heads) -> Float[Tensor, "batch token channel"]:
    """The channels of all heads, one after another."""
    return heads.transpose(1, 2).flatten(2)


def with_residual_and_mlp(
    block: ResidualAttentionBlock,
    x: Float[Tensor, "batch token channel"],
    attended: Float[Tensor, "batch token channel"],
) -> Float[Tensor, "batch token channel"]:
    """The rest of a block as trained: output projection, residual connections and MLP."""
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))
