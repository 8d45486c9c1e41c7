"""The loss of a batch: L = L_global + L_pixel + L_generate (eq. 10-12), every term with a weight and a switch."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer.config import TrainConfig
from trainer.glm import CLSBank, info_nce, pool
from trainer.plm import IGNORE, Adapter, classifiers, generate_loss, pixel_logits, prototypes
from trainer.ranks import gathered, mean, total

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0


class Taught(NamedTuple):
    """What the teacher says of a batch, and which images it speaks of."""

    cls: Float[Tensor, "batch channel"]
    target: Int[Tensor, "batch height width"]
    image: Int[Tensor, "batch"]


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


class TeacherLoss(nn.Module):
    """All terms of eq. 11 with what they need: the CLS bank, the adapter, the text features of seen classes."""

    text: Float[Tensor, "seen channel"]

    def __init__(self, config: TrainConfig, text: Float[Tensor, "seen channel"]) -> None:
        super().__init__()
        self.config = config
        channels = text.shape[1]
        self.register_buffer("text", F.normalize(text, dim=1), persistent=False)
        self.bank = CLSBank(config.bank, config.batch_size, channels)
        self.adapter = Adapter(config.vla, channels)
        if not (config.ce or config.generate):
            self.adapter.requires_grad_(False)

    def forward(self, features: Float[Tensor, "own channel y x"], taught: Taught) -> dict[str, Tensor]:
        """The weighted `total` and each unweighted term; `entropy` is the attention's (not a loss).

        Of several processes each gives its own part of a batch and gets the terms of all of it (`trainer.ranks`).
        """
        config, zero = self.config, features.new_zeros(())
        cls, image = gathered(taught.cls), gathered(taught.image)
        terms = {"global": zero, "ce": zero, "focal": zero, "dice": zero, "generate": zero}
        extra: dict[str, Tensor] = {}
        if config.glm != "off":
            pooled, entropy = pool(taught.cls, features, config.glm)
            extra = {"entropy": mean(entropy)} if config.glm == "attention" else {}
            terms["global"] = info_nce(pooled, cls, image, self.bank, config.tau)
            self.bank.push(cls, image)
        if config.ce or config.nel or config.generate:
            found = prototypes(features, taught.target, len(self.text))
            generated = self.adapter(found.features, cls)
            if config.generate:
                terms["generate"] = generate_loss(generated, found, self.text)
            if config.ce or config.nel:
                rows = classifiers(generated, found, self.text, taught.target, config.pseudo_scope)
                terms |= self._pixel_terms(features, rows)
        weighted = {name: getattr(config, f"weight_{name}") * term for name, term in terms.items()}
        pixel = weighted["ce"] + weighted["focal"] + weighted["dice"]
        whole = weighted["global"] + pixel + weighted["generate"]
        return {"total": whole, "pixel": pixel.detach(), **terms, **extra}

    def _pixel_terms(
        self,
        features: Float[Tensor, "own channel y x"],
        per_image: list[tuple[Float[Tensor, "row channel"], Int[Tensor, "height width"]]],
    ) -> dict[str, Tensor]:
        stride, seen = self.config.loss_stride, len(self.text)
        targets = [target[stride // 2 :: stride, stride // 2 :: stride] for _, target in per_image]
        labelled = sum((target != IGNORE).sum() for target in targets)
        pairs = sum(target[(target != IGNORE) & (target < seen)].unique().numel() for target in targets)
        sums = torch.zeros(3, device=features.device)
        for cells, (rows, _), target in zip(features, per_image, targets, strict=True):
            # logits of a whole batch at full resolution are gigabytes: recompute them in the backward pass
            sums = sums + checkpoint(
                self._image_terms, cells, rows, target, use_reentrant=False, preserve_rng_state=False
            )
        divisor = total(torch.stack([torch.as_tensor(n, device=sums.device) for n in (labelled, pairs, pairs)]))
        return dict(zip(("ce", "focal", "dice"), (total(sums) / divisor.clamp(min=1)).unbind(), strict=True))

    def _image_terms(
        self,
        features: Float[Tensor, "channel y x"],
        rows: Float[Tensor, "row channel"],
        target: Int[Tensor, "height width"],
    ) -> Float[Tensor, "3"]:
        config, seen = self.config, len(self.text)
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
