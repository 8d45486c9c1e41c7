"""Global learning: the student's pooled features must name their own image's CLS token (eq. 1-3)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.distributed.ranks import all_reduce_mean, rank

EMPTY = -1


def attention_weights(
    cls: Float[Tensor, "batch channel"], features: Float[Tensor, "batch channel y x"]
) -> Float[Tensor, "batch cell"]:
    """Eq. 1: softmax over the student's cells of s . R / sqrt(C), with s as CLIP gave it (un-normalised)."""
    scores = torch.einsum("bc,bcl->bl", cls, features.flatten(2)) / cls.shape[1] ** 0.5
    return scores.softmax(dim=1)


def pool(
    cls: Float[Tensor, "batch channel"],
    features: Float[Tensor, "batch channel y x"],
    how: Literal["attention", "max", "mean"],
) -> tuple[Float[Tensor, "batch channel"], Float[Tensor, ""]]:
    """One vector per image: eq. 2, or the maximum or mean over cells (Table 4); and the entropy of the attention.

    The entropy is the batch mean in nats, between 0 (one cell) and log(cells); it is nan for max and mean.
    """
    cells = features.flatten(2)
    if how == "attention":
        weights = attention_weights(cls, features)
        entropy = torch.special.entr(weights.detach()).sum(dim=1).mean()
        return torch.einsum("bcl,bl->bc", cells, weights), entropy
    pooled = cells.amax(dim=2) if how == "max" else cells.mean(dim=2)
    return pooled, torch.full((), torch.nan)


class CLSBank(nn.Module):
    """The CLS tokens of the last batches, newest first, and the image each belongs to.

    Part of the checkpoint: it starts empty and is full after `batches` batches.
    """

    cls: Float[Tensor, "entry channel"]
    image: Int[Tensor, "entry"]

    def __init__(self, batches: int, batch_size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("cls", torch.zeros(batches * batch_size, channels))
        self.register_buffer("image", torch.full((batches * batch_size,), EMPTY))

    @torch.no_grad()
    def push(self, cls: Float[Tensor, "batch channel"], image: Int[Tensor, "batch"]) -> None:
        """Insert a batch and drop the oldest; call it after the batch's own loss."""
        self.cls = torch.cat([cls, self.cls])[: len(self.cls)]
        self.image = torch.cat([image, self.image])[: len(self.image)]


def info_nce(
    pooled: Float[Tensor, "own channel"],
    cls: Float[Tensor, "batch channel"],
    image: Int[Tensor, "batch"],
    bank: CLSBank,
    tau: float,
) -> Float[Tensor, ""]:
    """Eq. 3 with the logarithm that is missing in print: mean over the batch, cosine similarities over tau.

    The positive of a pooled vector is its own CLS token; negatives are the CLS tokens of *other images* in the
    batch and in the bank. An entry of the same image is neither: cached CLS tokens repeat exactly, and would
    punish the positive. With several processes each passes the pooled vectors of its own part of the batch.
    """
    entries = F.normalize(torch.cat([cls, bank.cls]), dim=1)
    owners = torch.cat([image, bank.image])
    logits = F.normalize(pooled, dim=1) @ entries.T / tau
    row = torch.arange(len(pooled), device=cls.device) + rank() * len(pooled)
    own = row[:, None] == torch.arange(len(owners), device=cls.device)
    excluded = (owners == EMPTY) | (owners == image[row, None])
    logits = logits.masked_fill(excluded & ~own, -torch.inf)
    return all_reduce_mean(F.cross_entropy(logits, row))
