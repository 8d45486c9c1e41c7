"""Fusion of the masks of all scales into one label map (Algorithm 1; docs/decisions/method.md#selected-centers)."""

import numpy as np
from jaxtyping import Float, Int

from pipeline.masks.kmeans import Clusters, normalized

THRESHOLD = 0.8
NOT_IGNORED = -1


def group_centers(centers: Float[np.ndarray, "center channel"], threshold: float) -> Int[np.ndarray, "center"]:
    """The group of each center, as Algorithm 1's comment says: a selected center is not selected again.

    The first free center forms a group with all free centers whose cosine similarity to it exceeds the threshold;
    repeat. Groups are numbered in the order they form.
    """
    unit, group = normalized(centers), np.full(len(centers), -1)
    for number in range(len(centers)):
        free = group < 0
        if not free.any():
            break
        first = free.argmax()
        # not with BLAS, whose threads would keep spinning on cores that CLIP needs
        similarity = np.einsum("ic,c->i", unit, unit[first])
        # rounding may put the similarity of equal centers above 1
        group[free & (np.minimum(similarity, 1) > threshold)] = number
        group[first] = number
    return group


def fuse(
    clusters: Clusters, dense: Float[np.ndarray, "y x channel"], threshold: float = THRESHOLD
) -> Int[np.ndarray, "y x"]:
    """One label per token, from 0 by first appearance in reading order; NOT_IGNORED where no mask votes.

    Each token has one vote per scale, for the group of its center. Most votes win; a tie goes to the group whose
    center is most similar to the token, then to the lower group.
    """
    fused = np.full(dense.shape[:2], NOT_IGNORED)
    ignored = clusters.masks.any(axis=0)
    if not ignored.any():
        return fused
    group = group_centers(clusters.centers, threshold)
    points = normalized(dense[ignored])
    rows = np.arange(len(points))
    votes = np.zeros((len(points), group.max() + 1), int)
    best_similarity = np.full(votes.shape, -np.inf, np.float32)
    for scale in np.unique(clusters.scale):
        members = np.flatnonzero(clusters.scale == scale)
        center = members[clusters.masks[members][:, ignored].argmax(axis=0)]
        similarity = np.einsum("pc,pc->p", points, clusters.centers[center])
        cast = (rows, group[center])
        votes[cast] += 1
        best_similarity[cast] = np.maximum(best_similarity[cast], similarity)
    best_similarity[votes < votes.max(axis=1, keepdims=True)] = -np.inf
    fused[ignored] = _renumbered(best_similarity.argmax(axis=1))
    return fused


def _renumbered(labels: Int[np.ndarray, "point"]) -> Int[np.ndarray, "point"]:
    values, first = np.unique(labels, return_index=True)
    rank = np.empty(len(values), int)
    rank[np.argsort(first)] = np.arange(len(values))
    return rank[np.searchsorted(values, labels)]


def adjusted_rand_index(a: Int[np.ndarray, "token"], b: Int[np.ndarray, "token"]) -> float:
    """Adjusted Rand index of two labellings (Hubert and Arabie 1985): 1 for equal masks, 0 for agreement by chance."""
    if len(a) < 2:
        return 1.0
    table = np.zeros((int(a.max()) + 1, int(b.max()) + 1))
    np.add.at(table, (a, b), 1)
    inside, rows, columns = (float((n * (n - 1) / 2).sum()) for n in (table, table.sum(axis=1), table.sum(axis=0)))
    by_chance, most = rows * columns / (len(a) * (len(a) - 1) / 2), (rows + columns) / 2
    return 1.0 if most == by_chance else (inside - by_chance) / (most - by_chance)
