"""Fusion of the masks of all scales into one label map (Algorithm 1; docs/decisions/method.md#selected-centers)."""

import numpy as np
from jaxtyping import Float, Int

from pipeline.masks.kmeans import Clusters, normalised

THRESHOLD = 0.8
NOT_IGNORED = -1


def group_centres(centres: Float[np.ndarray, "centre channel"], threshold: float) -> Int[np.ndarray, "centre"]:
    """The group of each centre, as Algorithm 1's comment has it: what was selected is not selected again.

    The first centre not yet taken takes every other one not yet taken whose cosine similarity to it exceeds the
    threshold; repeat. Groups are numbered in the order they form.
    """
    unit, group = normalised(centres), np.full(len(centres), -1)
    for number in range(len(centres)):
        free = group < 0
        if not free.any():
            break
        first = free.argmax()
        # not by BLAS, whose threads would keep spinning on cores that CLIP needs
        similarity = np.einsum("ic,c->i", unit, unit[first])
        # rounding may put the similarity of equal centres above 1
        group[free & (np.minimum(similarity, 1) > threshold)] = number
        group[first] = number
    return group


def fuse(
    clusters: Clusters, dense: Float[np.ndarray, "y x channel"], threshold: float = THRESHOLD
) -> Int[np.ndarray, "y x"]:
    """One label per token, from 0 by first appearance in reading order; NOT_IGNORED where no mask votes.

    Each token has one vote per scale, for the group of its centre. Most votes win; a tie goes to the
    vote whose centre is more similar to the token, then to the lower group.
    """
    fused = np.full(dense.shape[:2], NOT_IGNORED)
    ignored = clusters.masks.any(axis=0)
    if not ignored.any():
        return fused
    group = group_centres(clusters.centres, threshold)
    points = normalised(dense[ignored])
    rows = np.arange(len(points))
    votes = np.zeros((len(points), group.max() + 1), int)
    closeness = np.full(votes.shape, -np.inf, np.float32)
    for scale in np.unique(clusters.scale):
        members = np.flatnonzero(clusters.scale == scale)
        centre = members[clusters.masks[members][:, ignored].argmax(axis=0)]
        similarity = np.einsum("pc,pc->p", points, clusters.centres[centre])
        cast = (rows, group[centre])
        votes[cast] += 1
        closeness[cast] = np.maximum(closeness[cast], similarity)
    closeness[votes < votes.max(axis=1, keepdims=True)] = -np.inf
    fused[ignored] = _renumbered(closeness.argmax(axis=1))
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
