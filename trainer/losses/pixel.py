"""The pixel losses: logits (eq. 9), cross-entropy (eq. 10), and the focal and dice losses of NEL (eq. 12)."""

import torch
from jaxtyping import Float
from torch import Tensor

from trainer.config import Logits, TrainConfig
from trainer.distributed.ranks import all_reduce_sum
from trainer.losses.pixel_sums import count_seen, pixel_sums
from trainer.losses.pixel_terms import IGNORE, Terms
from trainer.losses.plm import Classifiers


def pixel_logits(
    features: Float[Tensor, "*image channel y x"],
    classifier: Float[Tensor, "*image class channel"],
    kind: Logits,
    tau: float,
) -> Float[Tensor, "*image class y x"]:
    """Eq. 9: cosine similarity over tau, or the plain dot product, with L2-normalized classifier rows."""
    logits = torch.einsum("...kc,...cyx->...kyx", classifier, features)
    if kind == "dot":
        return logits
    # the few logits are divided, not the features, of which autograd would keep another copy
    return logits / cosine_divisor(features, tau)


def cosine_divisor(features: Float[Tensor, "*image channel y x"], tau: float) -> Float[Tensor, "*image 1 y x"]:
    """What dot products of features with L2-normalized rows are divided by to give cosine logits."""
    return tau * torch.linalg.vector_norm(features, dim=-3, keepdim=True).clamp(min=1e-12)


def pixel_losses(
    features: Float[Tensor, "local channel y x"], classifiers: Classifiers, num_seen: int, config: TrainConfig
) -> dict[str, Float[Tensor, ""]]:
    """The terms `ce`, `focal` and `dice` of the global batch, on every `config.loss_stride`-th pixel.

    Args:
        features: student features of this process's images.
        classifiers: their classifiers and targets.
        num_seen: number of seen classes, the first rows of every classifier.
        config: enabled terms, kind of logits, and pixels that NEL ignores.

    """
    stride = config.loss_stride
    target = classifiers.target[:, stride // 2 :: stride, stride // 2 :: stride]
    logits = pixel_logits(features, classifiers.weight, config.logits, config.tau)
    if classifiers.rows is not None:
        absent = torch.arange(logits.shape[1], device=logits.device) >= classifiers.rows[:, None]
        # finite, so that interpolation between two of them is
        logits = logits.masked_fill(absent[:, :, None, None], torch.finfo(logits.dtype).min / 4)
    sums = pixel_sums(logits, target, Terms(num_seen, config.ce, config.nel, config.nel_ignore == "masked"))
    num_labelled, num_present = (target != IGNORE).sum(), (count_seen(target, num_seen) > 0).sum()
    means = all_reduce_sum(sums) / all_reduce_sum(torch.stack([num_labelled, num_present, num_present])).clamp(min=1)
    return dict(zip(("ce", "focal", "dice"), means.unbind(), strict=True))
