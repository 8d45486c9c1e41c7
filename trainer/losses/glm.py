"""Global learning (GLM): an image's pooled student features are matched to its own CLS token (eq. 1-3)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.distributed.ranks import all_reduce_mean, rank

EMPTY = -1
"""Image of a bank entry that has not been filled yet."""


def attention_weights(
    cls: Float[Tensor, "batch channel"], features: Float[Tensor, "batch channel y x"]
) -> Float[Tensor, "batch cell"]:
    """Eq. 1: softmax over the student's cells of s . R / sqrt(C), where s is CLIP's CLS token, not normalized."""
    scores = torch.einsum("bc,bcl->bl", cls, features.flatten(2)) / cls.shape[1] ** 0.5
    return scores.softmax(dim=1)


def pool(
    cls: Float[Tensor, "batch channel"],
    features: Float[Tensor, "batch channel y x"],
    mode: Literal["attention", "max", "mean"],
) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, ""]]:
    """Pool each image to one vector: eq. 2, or the maximum or mean over cells (Table 4). Also return the entropy.

    The entropy of the attention is averaged over the batch, in nats between 0 (one cell) and log(cells). It is nan for
    max and mean.
    """
    cells = features.flatten(2)
    if mode == "attention":
        weights = attention_weights(cls, features)
        entropy = torch.special.entr(weights.detach()).sum(dim=1).mean()
        return torch.einsum("bcl,bl->bc", cells, weights), entropy
    pooled = cells.amax(dim=2) if mode == "max" else cells.mean(dim=2)
    return pooled, torch.full((), torch.nan)


class CLSBank(nn.Module):
    """FIFO bank of the CLS tokens of the last batches, newest first, and the image that each belongs to.

    It starts empty, is full after `batches` batches, and is part of the checkpoint.
    """

    cls: Float[Tensor, "entry channel"]
    image: Int[Tensor, "entry"]

    def __init__(self, batches: int, batch_size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("cls", torch.zeros(batches * batch_size, channels))
        self.register_buffer("image", torch.full((batches * batch_size,), EMPTY))

    @torch.no_grad()
    def push(self, cls: Float[Tensor, "batch channel"], image: Int[Tensor, "batch"]) -> None:
        """Insert a batch and drop the oldest one. Call it after the loss of that batch."""
        self.cls = torch.cat([cls, self.cls])[: len(self.cls)]
        self.image = torch.cat([image, self.image])[: len(self.image)]


def info_nce(
    pooled: Float[Tensor, "local channel"],
    cls: Float[Tensor, "batch channel"],
    image: Int[Tensor, "batch"],
    bank: CLSBank,
    tau: float,
) -> Float[Tensor, ""]:
    """Eq. 3 with the logarithm that is missing in print: InfoNCE over cosine similarities, averaged over the batch.

    The positive of a pooled vector is its own CLS token. Its negatives are the CLS tokens of *other images* in the
    batch and in the bank. An entry of the same image is neither: cached CLS tokens repeat exactly, so it would punish
    the positive. With several processes, each passes the pooled vectors of its own slice of the batch.
    """
    entries = F.normalize(torch.cat([cls, bank.cls]), dim=1)
    entry_image = torch.cat([image, bank.image])
    logits = F.normalize(pooled, dim=1) @ entries.T / tau
    positive = torch.arange(len(pooled), device=cls.device) + rank() * len(pooled)
    is_positive = positive[:, None] == torch.arange(len(entries), device=cls.device)
    excluded = (entry_image == EMPTY) | (entry_image == image[positive, None])
    logits = logits.masked_fill(excluded & ~is_positive, -torch.inf)
    return all_reduce_mean(F.cross_entropy(logits, positive))
