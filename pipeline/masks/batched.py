"""K-means and fusion of a batch of views on a torch device, without synchronizing with the host.

The same algorithm as in `pipeline.masks.kmeans` and `pipeline.masks.fusion`, for a GPU, where one call per image would
cost more than CLIP itself. Dropped centers and tokens that are not ignored keep their indices and are masked, so that
all shapes are fixed and the host never waits for a result.
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
    """All scales of a batch: centers, which of them are not dropped, and the center of each token at each scale."""

    tokens: Float[Tensor, "batch point channel"]
    ignored: Bool[Tensor, "batch point"]
    centers: Float[Tensor, "batch center channel"]
    alive: Bool[Tensor, "batch center"]
    votes: Int[Tensor, "batch scale point"]
    sizes: tuple[int, ...]
    """Number of centers of each scale, including dropped ones."""

    def view(self, index: int, grid: tuple[int, int]) -> Clusters:
        """The clusters of one view, without dropped centers."""
        alive = self.alive[index].cpu().numpy()
        scale = np.repeat(np.arange(len(self.sizes)), self.sizes)
        votes = self.votes[index].cpu().numpy()[scale].reshape(-1, *grid)
        masks = (votes == np.arange(len(scale))[:, None, None]) & self.ignored[index].cpu().numpy().reshape(grid)
        return Clusters(self.centers[index].cpu().numpy()[alive], masks[alive], scale[alive])


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
        _lloyd(tokens, ignored, _window_members(dense.shape[1], dense.shape[2], window, dense.device), updates)
        for window in windows
    ]
    sizes = tuple(centers.shape[1] for centers, _, _ in scales)
    starts = [sum(sizes[:scale]) for scale in range(len(sizes))]
    return BatchClusters(
        tokens,
        ignored,
        torch.cat([centers for centers, _, _ in scales], dim=1),
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
    index = clusters.votes.flatten(1)[..., None].expand(-1, -1, clusters.centers.shape[2])
    voted = clusters.centers.gather(1, index)
    similarity = (voted.view(batch, scales, points, -1) * clusters.tokens[:, None]).sum(dim=3)
    same = group[:, :, None] == group[:, None]
    count = same.sum(dim=2)
    best = count == count.amax(dim=1, keepdim=True)
    nearest = torch.where(same, similarity[:, None], -torch.inf).amax(dim=2)
    nearest = torch.where(best, nearest, -torch.inf)
    best &= nearest == nearest.amax(dim=1, keepdim=True)
    chosen = torch.where(best, group, clusters.centers.shape[1]).amin(dim=1)
    return _renumbered(chosen, clusters.ignored, clusters.centers.shape[1])


def _window_members(height: int, width: int, window: int, device: torch.device) -> Float[Tensor, "window point"]:
    """1 for each token of a window, windows in reading order."""
    y, x = torch.arange(height, device=device) // window, torch.arange(width, device=device) // window
    across = -(-width // window)
    index = (y[:, None] * across + x).flatten()
    return (index == torch.arange(-(-height // window) * across, device=device)[:, None]).float()


def _lloyd(
    tokens: Float[Tensor, "batch point channel"],
    ignored: Bool[Tensor, "batch point"],
    members: Float[Tensor, "center point"],
    updates: int,
) -> tuple[Float[Tensor, "batch center channel"], Bool[Tensor, "batch center"], Int[Tensor, "batch point"]]:
    """Centers, which of them are not dropped, and labels; `members` is the initial assignment of tokens to centers."""
    assigned = members * ignored[:, None]
    index = torch.arange(len(members), device=tokens.device)
    for update in range(updates + 1):
        # a matrix product: on a GPU, a scattered sum would not be deterministic
        centers, alive = F.normalize(assigned @ tokens, dim=2, eps=1e-12), assigned.any(dim=2)
        similarity = tokens @ centers.mT
        labels = similarity.masked_fill(~alive[:, None], -torch.inf).argmax(dim=2)
        if update < updates:
            assigned = ((labels[:, None] == index[:, None]) & ignored[:, None]).float()
    return centers, alive, labels


def _groups(clusters: BatchClusters, threshold: float) -> Int[Tensor, "batch center"]:
    """The group of each center, as the index of the group's first center, which orders the groups as they form."""
    similar = (clusters.centers @ clusters.centers.mT).clamp(max=1) > threshold
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
    """Renumber the labels of the ignored tokens from 0 by first appearance."""
    points = label.shape[1]
    index = torch.where(ignored, torch.arange(points, device=label.device), points)
    first = torch.full((len(label), labels + 1), points, device=label.device)
    first.scatter_reduce_(1, label, index, "amin")
    rank = first.argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return torch.where(ignored, rank.gather(1, label), NOT_IGNORED)
