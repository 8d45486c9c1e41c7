"""NACLIP (arXiv 2404.08181): tokens attend to tokens with similar keys, and more to those nearby."""

import torch
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor
from torch.nn import functional as F

from pipeline.teacher.attention import Heads, attend

STD = 5.0
"""Standard deviation of the window in tokens, as in the paper."""


def last_block(
    block: ResidualAttentionBlock,
    _x: Float[Tensor, "batch token channel"],
    _q: Heads,
    k: Heads,
    v: Heads,
    grid: tuple[int, int],
) -> Float[Tensor, "batch token channel"]:
    """softmax(k k^T + window) v, without residual and MLP."""
    return block.attn.out_proj(attend(k, k, v, window(grid, k.device).to(k.dtype)))


def window(grid: tuple[int, int], device: torch.device) -> Float[Tensor, "token token"]:
    """A Gaussian of the distance between two patches on the grid, 1 at its peak; 0 from and to the CLS token."""
    y, x = (torch.arange(size, device=device, dtype=torch.float32) for size in grid)
    down, across = (torch.exp(-((a[:, None] - a) ** 2) / (2 * STD**2)) for a in (y, x))
    return F.pad(torch.kron(down, across), (1, 0, 1, 0))
