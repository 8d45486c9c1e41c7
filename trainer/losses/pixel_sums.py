"""Cross-entropy, focal and dice sums over upsampled logits, with a backward pass of their own.

The logits live on the student's grid, a quarter of the image's side or less, and every pixel needs them interpolated.
Autograd would keep a dozen tensors of full-resolution logits, which need not exist. The forward pass keeps the dice
sums of each class, and the backward pass recomputes the rest: in chunks (`trainer.losses.pixel_torch`), or on a GPU in
two kernels, which also keep each pixel's log-sum-exp (`trainer.losses.pixel_triton`).
"""

from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from trainer.losses import pixel_torch
from trainer.losses.pixel_terms import IGNORE, Terms, Upstream


def pixel_sums(
    logits: Float[Tensor, "image row y x"], target: Int[Tensor, "image height width"], terms: Terms
) -> Float[Tensor, "3"]:
    """Cross-entropy, focal and dice of bilinearly upsampled logits; their gradient flows into the logits.

    Args:
        logits: one row per seen class, then the pseudo labels; a row that an image lacks is hugely negative.
        target: the row of each pixel, or `IGNORE`.
        terms: what is computed; the sums of other terms are zero.

    Returns:
        The cross-entropy (eq. 10) summed over labelled pixels; the focal loss of each image, averaged over its pixels
        and summed over images and seen classes; the dice loss summed over images and their present classes (eq. 12).

    """
    return _PixelSums.apply(logits, target, terms)


class _PixelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, terms: Terms) -> Tensor:
        statistics = _backend(logits).statistics(logits, target, terms)
        count = count_seen(target, terms.num_seen)
        pixels = count.sum(dim=1) if terms.masked else torch.full_like(count[:, 0], target[0].numel())
        pixels = pixels.clamp(min=1)
        present = count > 0 if terms.nel else torch.zeros_like(count, dtype=torch.bool)
        denominator = statistics.probability + count + 1
        dice = torch.where(present, 1 - (2 * statistics.overlap + 1) / denominator, 0.0)
        ctx.save_for_backward(logits, target, statistics.log_sum, statistics.overlap, denominator, pixels, present)
        ctx.terms = terms
        return torch.stack([statistics.ce.sum(), (statistics.focal / pixels).sum(), dice.sum()])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, target, log_sum, overlap, denominator, pixels, present = ctx.saved_tensors
        ce, focal, dice = gradients[0].unbind()
        miss = torch.where(present, dice * (2 * overlap + 1) / denominator**2, 0.0)
        hit = torch.where(present, dice * 2 / denominator, 0.0)
        upstream = Upstream(ce, focal / pixels, miss, hit)
        return _backend(logits).gradient(logits, target, log_sum, ctx.terms, upstream), None, None


def _backend(logits: Tensor) -> ModuleType:
    """The module that computes on the device of the logits."""
    if logits.is_cuda and logits.dtype == torch.float32 and find_spec("triton"):
        from trainer.losses import pixel_triton  # here: it needs Triton, which only some platforms have

        return pixel_triton
    return pixel_torch


def count_seen(target: Int[Tensor, "image height width"], num_seen: int) -> Int[Tensor, "image seen"]:
    """How many pixels of each image have each seen class as their target."""
    flat = target.flatten(1)
    seen = (flat != IGNORE) & (flat < num_seen)
    count = torch.zeros(len(flat), num_seen + 1, dtype=torch.long, device=flat.device)
    return count.scatter_add_(1, flat.where(seen, num_seen), torch.ones_like(flat))[:, :-1]
