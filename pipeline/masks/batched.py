"""K-means and fusion of a batch of views on a torch device, without reading anything back in between.

The same algorithm as `pipeline.masks.kmeans` and `pipeline.masks.fusion`, for a GPU, where one call per image costs
more than CLIP itself. Dropped centres and tokens that are not ignored keep their indices and are masked, so that all
shapes are fixed and the host never waits for a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from pipeline.masks.fusion import NOT_IGNORED, THRESHOLD
from pipeline.masks.kmeans import UPDATES, WINDOWS, Clusters


@dataclass(frozen=True)
class BatchClusters:
    """All scales of a batch: centres, which of them remain, and the centre that each ignored token votes for."""

    tokens: Float[Tensor, "batch point channel"]
    ignored: Bool[Tensor, "batch point"]
    centres: Float[Tensor, "batch centre channel"]
    alive: Bool[Tensor, "batch centre"]
    votes: Int[Tensor, "batch scale point"]
    sizes: tuple[int, ...]
    """Number of centres of each scale, dropped ones included."""

    def view(self, index: int, grid: tuple[int, int]) -> Clusters:
        """The clusters of one view, without dropped centres."""
        alive = self.alive[index].cpu().numpy()
        scale = np.repeat(np.arange(len(self.sizes)), self.sizes)
        votes = self.votes[index].cpu().numpy()[scale].reshape(-1, *grid)
        masks = (votes == np.arange(len(scale))[:, None, None]) & self.ignored[index].cpu().numpy().reshape(grid)
        return Clusters(self.centres[index].cpu().numpy()[alive], masks[alive], scale[alive])


def cluster_batch(
    dense: Float[Tensor, "batch y x channel"],
    ignored: Bool[Tensor, "batch y x"],
    windows: Sequence[int] = WINDOWS,
    updates: int = UPDATES,
) -> BatchClusters:
    """Spherical k-means on the ignored tokens of each view, once per window size (eq. 4-5)."""
    tokens = F.normalize(dense.float().flatten(1, 2), dim=2, eps=1e-12)
    ignored = ignored.flatten(1)
    scales = [
        _lloyd(tokens, ignored, _windows(dense.shape[1], dense.shape[2], window, dense.device), updates)
        for window in windows
    ]
    sizes = tuple(centres.shape[1] for centres, _, _ in scales)
    starts = [sum(sizes[:scale]) for scale in range(len(sizes))]
    return BatchClusters(
        tokens,
        ignored,
        torch.cat([centres for centres, _, _ in scales], dim=1),
        torch.cat([alive for _, alive, _ in scales], dim=1),
        torch.stack([labels + start for (_, _, labels), start in zip(scales, starts, strict=True)], dim=1),
        sizes,
    )


def fuse_batch(clusters: BatchClusters, threshold: float = THRESHOLD) -> Int[Tensor, "batch point"]:
    """Fused labels of all tokens (Algorithm 1), NOT_IGNORED where not ignored.

    Votes, ties and numbering are those of `pipeline.masks.fusion.fuse`.
    """
    batch, scales, points = clusters.votes.shape
    group = _groups(clusters, threshold).gather(1, clusters.votes.flatten(1)).view(batch, scales, points)
    voted = clusters.centres.gather(1, clusters.votes.flatten(1)[..., None].expand(-1, -1, clusters.centres.shape[2]))
    closeness = (voted.view(batch, scales, points, -1) * clusters.tokens[:, None]).sum(dim=3)
    same = group[:, :, None] == group[:, None]
    count = same.sum(dim=2)
    best = count == count.amax(dim=1, keepdim=True)
    nearest = torch.where(same, closeness[:, None], -torch.inf).amax(dim=2)
    nearest = torch.where(best, nearest, -torch.inf)
    best &= nearest == nearest.amax(dim=1, keepdim=True)
    chosen = torch.where(best, group, clusters.centres.shape[1]).amin(dim=1)
    return _renumbered(chosen, clusters.ignored, clusters.centres.shape[1])


def _windows(height: int, width: int, window: int, device: torch.device) -> Float[Tensor, "window point"]:
    """Which tokens (1) are in each window, in reading order."""
    y, x = torch.arange(height, device=device) // window, torch.arange(width, device=device) // window
    across = -(-width // window)
    index = (y[:, None] * across + x).flatten()
    return (index == torch.arange(-(-height // window) * across, device=device)[:, None]).float()


def _lloyd(
    tokens: Float[Tensor, "batch point channel"],
    ignored: Bool[Tensor, "batch point"],
    member: Float[Tensor, "centre point"],
    updates: int,
) -> tuple[Float[Tensor, "batch centre channel"], Bool[Tensor, "batch centre"], Int[Tensor, "batch point"]]:
    """Centres, which of them remain, and labels; `member` is the initial assignment of tokens to centres."""
    share = member * ignored[:, None]
    number = torch.arange(len(member), device=tokens.device)
    for update in range(updates + 1):
        # a product, not a scattered sum: on a GPU the latter adds in another order each time
        centres, alive = F.normalize(share @ tokens, dim=2, eps=1e-12), share.any(dim=2)
        similarity = tokens @ centres.mT
        labels = similarity.masked_fill(~alive[:, None], -torch.inf).argmax(dim=2)
        if update < updates:
            share = ((labels[:, None] == number[:, None]) & ignored[:, None]).float()
    return centres, alive, labels


def _groups(clusters: BatchClusters, threshold: float) -> Int[Tensor, "batch centre"]:
    """The group of each centre, as the index of the group's first centre: groups are ordered as they form."""
    similar = (clusters.centres @ clusters.centres.mT).clamp(max=1) > threshold
    free = clusters.alive.clone()
    group = torch.zeros_like(free, dtype=torch.long)
    for first in range(free.shape[1]):
        taken = similar[:, first] & free
        taken[:, first] = free[:, first]
        taken &= free[:, first, None]
        group.masked_fill_(taken, first)
        free &= ~taken
    return group


def _renumbered(
    label: Int[Tensor, "batch point"], ignored: Bool[Tensor, "batch point"], labels: int
) -> Int[Tensor, "batch point"]:
    """Labels of the ignored tokens from 0 by first appearance."""
    points = label.shape[1]
    index = torch.where(ignored, torch.arange(points, device=label.device), points)
    first = torch.full((len(label), labels + 1), points, device=label.device)
    first.scatter_reduce_(1, label, index, "amin")
    rank = first.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return torch.where(ignored, rank.gather(1, label), NOT_IGNORED)
