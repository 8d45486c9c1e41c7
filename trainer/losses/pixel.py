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
    classifier: Float[Tensor, "class channel"],
    kind: Logits,
    tau: float,
) -> Float[Tensor, "class y x"]:
    """Eq. 9: cosine similarity over tau, or the plain dot product, with L2-normalized classifier rows."""
    if kind == "cosine":
        return torch.einsum("kc,cyx->kyx", classifier / tau, F.normalize(features, dim=0))
    return torch.einsum("kc,cyx->kyx", classifier, features)


def focal_loss(
    logits: Float[Tensor, "seen pixel"], positive: Float[Tensor, "seen pixel"], mask: Float[Tensor, "pixel"]
) -> Float[Tensor, ""]:
    """Sigmoid focal loss of one image: averaged over the pixels of `mask`, summed over classes (NEL, before 1/N)."""
    probability = logits.sigmoid()
    p_t = probability * positive + (1 - probability) * (1 - positive)
    alpha_t = FOCAL_ALPHA * positive + (1 - FOCAL_ALPHA) * (1 - positive)
    bce = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (alpha_t * (1 - p_t) ** FOCAL_GAMMA * bce * mask).sum() / mask.sum().clamp(min=1)


def dice_loss(
    logits: Float[Tensor, "seen pixel"], positive: Float[Tensor, "seen pixel"], mask: Float[Tensor, "pixel"]
) -> Float[Tensor, ""]:
    """Dice loss of one image, summed over the classes present in it (NEL, before 1/N)."""
    present = positive.any(dim=1)
    probability, positive = logits[present].sigmoid() * mask, positive[present]
    intersection = (probability * positive).sum(dim=1)
    return (1 - (2 * intersection + 1) / (probability.sum(dim=1) + positive.sum(dim=1) + 1)).sum()


def pixel_losses(
    features: Float[Tensor, "local channel y x"],
    classifiers: list[tuple[Float[Tensor, "class channel"], Int[Tensor, "height width"]]],
    num_seen: int,
    config: TrainConfig,
) -> dict[str, Float[Tensor, ""]]:
    """The terms `ce`, `focal` and `dice` of the global batch, on every `config.loss_stride`-th pixel.

    Args:
        features: student features of this process's images.
        classifiers: for each image its classifier and its targets as rows of it (`plm.build_classifiers`).
        num_seen: number of seen classes, the first rows of every classifier.
        config: enabled terms, kind of logits, and pixels that NEL ignores.

    """
    stride = config.loss_stride
    targets = [target[stride // 2 :: stride, stride // 2 :: stride] for _, target in classifiers]
    num_labelled = sum((target != IGNORE).sum() for target in targets)
    num_present = sum(target[(target != IGNORE) & (target < num_seen)].unique().numel() for target in targets)
    sums = torch.zeros(3, device=features.device)
    for image_features, (classifier, _), target in zip(features, classifiers, targets, strict=True):
        # full-resolution logits of a whole batch take gigabytes, so the backward pass recomputes them image by image
        sums = sums + checkpoint(
            _image_losses,
            image_features,
            classifier,
            target,
            num_seen,
            config,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    counts = [torch.as_tensor(n, device=sums.device) for n in (num_labelled, num_present, num_present)]
    means = all_reduce_sum(sums) / all_reduce_sum(torch.stack(counts)).clamp(min=1)
    return dict(zip(("ce", "focal", "dice"), means.unbind(), strict=True))


def _image_losses(
    features: Float[Tensor, "channel y x"],
    classifier: Float[Tensor, "class channel"],
    target: Int[Tensor, "height width"],
    num_seen: int,
    config: TrainConfig,
) -> Float[Tensor, "3"]:
    """Cross-entropy summed over the pixels of one image, and the image's focal and dice losses."""
    logits = pixel_logits(features, classifier, config.logits, config.tau)[None]
    if logits.shape[2:] != target.shape:
        logits = F.interpolate(logits, target.shape, mode="bilinear", align_corners=False)
    ce = focal = dice = logits.new_zeros(())
    if config.ce:
        ce = F.cross_entropy(logits, target[None], ignore_index=IGNORE, reduction="sum")
    if config.nel:
        flat_target, seen_logits = target.flatten(), logits[0, :num_seen].flatten(1)
        seen = torch.arange(num_seen, device=target.device)
        positive = (flat_target == seen[:, None]).to(seen_logits.dtype)
        has_seen = ((flat_target != IGNORE) & (flat_target < num_seen)).to(seen_logits.dtype)
        mask = torch.ones_like(has_seen) if config.nel_ignore == "negative" else has_seen
        focal, dice = focal_loss(seen_logits, positive, mask), dice_loss(seen_logits, positive, mask)
    return torch.stack([ce, focal, dice])
