"""The pixel losses: logits (eq. 9), cross-entropy (eq. 10), and the focal and dice losses of NEL (eq. 12)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer.config import Logits, TrainConfig
from trainer.distributed.ranks import all_reduce_sum
from trainer.losses.plm import IGNORE

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


def pixel_logits(
    features: Float[Tensor, "channel y x"],
    rows: Float[Tensor, "row channel"],
    kind: Logits,
    tau: float,
) -> Float[Tensor, "row y x"]:
    """Eq. 9: each cell against L2-normalised classifier rows, as cosine over tau or as the plain product."""
    if kind == "cosine":
        return torch.einsum("rc,cyx->ryx", rows / tau, F.normalize(features, dim=0))
    return torch.einsum("rc,cyx->ryx", rows, features)


def focal_loss(
    logits: Float[Tensor, "seen pixel"], positive: Float[Tensor, "seen pixel"], keep: Float[Tensor, "pixel"]
) -> Float[Tensor, ""]:
    """Sigmoid focal loss of one image: mean over the kept pixels, summed over classes (NEL, before 1/N)."""
    probability = logits.sigmoid()
    right = probability * positive + (1 - probability) * (1 - positive)
    alpha = FOCAL_ALPHA * positive + (1 - FOCAL_ALPHA) * (1 - positive)
    entropy = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (alpha * (1 - right) ** FOCAL_GAMMA * entropy * keep).sum() / keep.sum().clamp(min=1)


def dice_loss(
    logits: Float[Tensor, "seen pixel"], positive: Float[Tensor, "seen pixel"], keep: Float[Tensor, "pixel"]
) -> Float[Tensor, ""]:
    """Dice loss of one image, summed over the classes present in it (NEL, before 1/N)."""
    present = positive.any(dim=1)
    probability, positive = logits[present].sigmoid() * keep, positive[present]
    overlap = 2 * (probability * positive).sum(dim=1) + 1
    return (1 - overlap / (probability.sum(dim=1) + positive.sum(dim=1) + 1)).sum()


def pixel_losses(
    features: Float[Tensor, "own channel y x"],
    classifiers: list[tuple[Float[Tensor, "row channel"], Int[Tensor, "height width"]]],
    seen: int,
    config: TrainConfig,
) -> dict[str, Float[Tensor, ""]]:
    """The terms `ce`, `focal` and `dice` of the global batch, at every `config.loss_stride`-th pixel.

    Args:
        features: of this process's images.
        classifiers: per image the rows its pixels choose between, and its targets as row numbers (`plm.classifiers`).
        seen: how many rows, the first ones, are seen classes.
        config: switches of the terms, kind of logits, pixels that NEL ignores.

    """
    stride = config.loss_stride
    targets = [target[stride // 2 :: stride, stride // 2 :: stride] for _, target in classifiers]
    labelled = sum((target != IGNORE).sum() for target in targets)
    pairs = sum(target[(target != IGNORE) & (target < seen)].unique().numel() for target in targets)
    sums = torch.zeros(3, device=features.device)
    for cells, (rows, _), target in zip(features, classifiers, targets, strict=True):
        # logits of a whole batch at full resolution are gigabytes: recompute them in the backward pass
        sums = sums + checkpoint(
            _image_losses, cells, rows, target, seen, config, use_reentrant=False, preserve_rng_state=False
        )
    counts = [torch.as_tensor(n, device=sums.device) for n in (labelled, pairs, pairs)]
    means = all_reduce_sum(sums) / all_reduce_sum(torch.stack(counts)).clamp(min=1)
    return dict(zip(("ce", "focal", "dice"), means.unbind(), strict=True))


def _image_losses(
    features: Float[Tensor, "channel y x"],
    rows: Float[Tensor, "row channel"],
    target: Int[Tensor, "height width"],
    seen: int,
    config: TrainConfig,
) -> Float[Tensor, "3"]:
    """Cross-entropy summed over one image's pixels, and its focal and dice losses."""
    logits = pixel_logits(features, rows, config.logits, config.tau)[None]
    if logits.shape[2:] != target.shape:
        logits = F.interpolate(logits, target.shape, mode="bilinear", align_corners=False)
    ce = focal = dice = logits.new_zeros(())
    if config.ce:
        ce = F.cross_entropy(logits, target[None], ignore_index=IGNORE, reduction="sum")
    if config.nel:
        flat, scores = target.flatten(), logits[0, :seen].flatten(1)
        positive = (flat == torch.arange(seen, device=flat.device)[:, None]).to(scores.dtype)
        has_seen = ((flat != IGNORE) & (flat < seen)).to(scores.dtype)
        keep = torch.ones_like(has_seen) if config.nel_ignore == "negative" else has_seen
        focal, dice = focal_loss(scores, positive, keep), dice_loss(scores, positive, keep)
    return torch.stack([ce, focal, dice])
