"""Invariants of clusters and fused labels."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_inputs import random_dense

from pipeline.masks.fusion import NOT_IGNORED, fuse, group_centers
from pipeline.masks.kmeans import assign_faiss, cluster, max_centers

GRID = (7, 9)
TOKENS = GRID[0] * GRID[1]
ASSIGN = assign_faiss
seeds = st.integers(0, 100_000)


def draw(seed, count, repeated):
    """Tokens, half of them equal if `repeated`, of which `count` are ignored."""
    rng, dense = np.random.default_rng(seed), random_dense(seed, GRID).copy()
    if repeated:
        dense[rng.random(GRID) < 0.5] = dense[0, 0]
    ignored = np.zeros(TOKENS, bool)
    ignored[rng.permutation(TOKENS)[:count]] = True
    return dense, ignored.reshape(GRID)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(seeds, st.sampled_from([0, 1, 2, 20, TOKENS]), st.booleans(), st.sampled_from([-1.5, 0.3, 0.8, 1.0, 2.0]))
def test_labels_cover_exactly_the_ignored_tokens_and_are_numbered_without_gaps(seed, count, repeated, threshold):
    dense, ignored = draw(seed, count, repeated)
    clusters = cluster(dense, ignored, ASSIGN, (3, 7), 10)
    fused = fuse(clusters, dense, threshold)
    np.testing.assert_array_equal(fused != NOT_IGNORED, ignored)
    assert sorted(set(fused[ignored])) == list(range(fused.max(initial=-1) + 1))
    assert len(clusters.centers) <= max_centers(GRID, (3, 7))
    for scale in (0, 1):  # each ignored token is in exactly one mask per scale
        np.testing.assert_array_equal(clusters.masks[clusters.scale == scale].sum(axis=0), ignored)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seeds, st.integers(1, 30), st.sampled_from([1.0, 1.5, 9.0]))
def test_lambda_of_at_least_1_keeps_every_center(seed, count, threshold):
    centers = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    centers = np.concatenate([centers, centers[:3]])  # even equal ones
    assert group_centers(centers, threshold).tolist() == list(range(len(centers)))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seeds, st.integers(1, 30), st.sampled_from([-1.1, -5.0]))
def test_lambda_below_minus_1_gives_one_group(seed, count, threshold):
    centers = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
    centers = np.concatenate([centers, -centers])
    assert not group_centers(centers, threshold).any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seeds, st.integers(1, 20), st.integers(1, 4), st.sampled_from([-0.5, 0.0, 0.8, 0.999]))
def test_parallel_centers_merge_and_change_no_other_group(seed, count, copies, threshold):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(count, 4)).astype(np.float32)
    alone = group_centers(centers, threshold)
    doubled = group_centers(
        np.concatenate([centers * scale for scale in (1.0, *rng.uniform(0.5, 2, copies))]), threshold
    )
    np.testing.assert_array_equal(doubled.reshape(copies + 1, count), np.tile(alone, (copies + 1, 1)))
