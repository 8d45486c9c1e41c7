"""Fusion: groups of similar centers (Algorithm 1) and one vote per scale."""

import numpy as np
import oracle_masks as oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_inputs import random_dense

from pipeline.masks.fusion import NOT_IGNORED, fuse, group_centers
from pipeline.masks.kmeans import Clusters


def directions(*degrees):
    angles = np.deg2rad(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def clusters(centers, *scales):
    """Clusters of a 1 x n grid: `scales` give, scale by scale, the center of each token, None for no vote."""
    masks = np.zeros((len(centers), 1, len(scales[0])), bool)
    scale = np.zeros(len(centers), int)
    for number, chosen in enumerate(scales):
        for token, center in enumerate(chosen):
            if center is not None:
                masks[center, 0, token], scale[center] = True, number
    return Clusters(np.asarray(centers, np.float32), masks, scale)


def members(labels):
    return [np.flatnonzero(labels == number).tolist() for number in range(labels.max(initial=-1) + 1)]


# -- groups (Algorithm 1) ------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([-0.5, 0.0, 0.3, 0.8, 0.95]))
def test_groups_equal_the_reference_of_algorithm_1(seed, count, threshold):
    centers = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    assert members(group_centers(centers, threshold)) == oracle.groups(centers, threshold)


def test_algorithm_1_as_printed_selects_a_center_twice():
    chain = directions(0, 30, 60)  # neighbors are similar (0.87), the ends are not (0.5)
    assert oracle.literal_groups(chain, 0.8) == [[0, 1], [1, 2], [2]]
    assert members(group_centers(chain, 0.8)) == [[0, 1], [2]]


def test_algorithm_1_as_printed_agrees_for_separated_groups():
    # as printed, each member repeats the group without the earlier members
    centers = directions(0, 90, 5, 95)
    assert oracle.literal_groups(centers, 0.8) == [[0, 2], [1, 3], [2], [3]]
    assert members(group_centers(centers, 0.8)) == [[0, 2], [1, 3]]


def test_first_free_center_seeds_a_group():
    assert members(group_centers(directions(0, 30, 60, 25), 0.8)) == [[0, 1, 3], [2]]
    assert members(group_centers(directions(30, 0, 60, 25), 0.8)) == [[0, 1, 2, 3]]


def test_similarity_equal_to_lambda_does_not_merge():
    centers = np.array([[1, 0], [0, 1]], np.float32)  # cosine exactly 0
    assert group_centers(centers, 0.0).tolist() == [0, 1]
    assert group_centers(centers, -0.01).tolist() == [0, 0]


def test_groups_do_not_depend_on_the_length_of_centers():
    centers = directions(0, 30, 60) * np.array([[0.01], [40], [3]], np.float32)
    assert group_centers(centers, 0.8).tolist() == [0, 0, 1]


def test_lambda_1_merges_no_distinct_centers_and_minus_1_merges_all():
    centers = np.random.default_rng(0).normal(size=(20, 5))
    assert group_centers(centers, 1.0).tolist() == list(range(20))
    assert group_centers(centers, -1.0).tolist() == [0] * 20


# -- votes ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(0, 10_000),
    st.sampled_from([(3,), (3, 7), (2, 3, 7), (1, 2, 3, 4)]),
    st.sampled_from([-1.0, 0.3, 0.6, 0.8, 0.99]),
    st.sampled_from([0.0, 0.1, 0.6, 1.0]),
)
def test_fused_labels_equal_the_reference(seed, windows, threshold, share):
    ignored = np.random.default_rng(seed).random((9, 8)) < share
    dense = random_dense(seed, (9, 8))
    expected, found = np.full((9, 8), NOT_IGNORED), Clusters(np.zeros((0, 16)), np.zeros((0, 9, 8), bool), np.zeros(0))
    if ignored.any():
        centers, masks, scales = oracle.clusters(dense, ignored, windows, 1)
        expected = oracle.fused(centers, masks, scales, dense, threshold)
        found = Clusters(centers.astype(np.float32), masks, scales)
    labels = fuse(found, dense, threshold)
    np.testing.assert_array_equal(labels, expected)
    # invariants, whatever the votes were
    np.testing.assert_array_equal(labels >= 0, ignored)
    assert (labels[~ignored] == NOT_IGNORED).all()
    assert np.unique(labels[ignored]).tolist() == list(range(labels.max() + 1))


def test_label_of_a_single_scale_is_the_group_of_the_center():
    found = clusters(directions(0, 90, 10), [0, 1, 2, 1])
    assert fuse(found, directions(0, 90, 10, 80)[None]).tolist() == [[0, 1, 0, 1]]


def test_two_votes_outweigh_one_more_similar_center():
    centers = directions(0, 5, 10, 90)  # the first three are one group
    found = clusters(centers, [0, 0], [1, 1], [2, 3])
    assert fuse(found, directions(0, 90)[None]).tolist() == [[0, 0]]


def test_tie_goes_to_the_more_similar_center():
    found = clusters(directions(0, 10, 90), [0, 0, 0], [1, 2, 2])
    assert fuse(found, directions(0, 80, 40)[None]).tolist() == [[0, 1, 0]]


def test_similarity_decides_only_between_groups_with_most_votes():
    centers = directions(0, 2, 60, 62, 120)  # groups {0, 1}, {2, 3}, {4}
    found = clusters(centers, [0, 0], [1, 1], [2, 2], [3, 3], [4, 4])
    assert fuse(found, directions(100, 10)[None]).tolist() == [[0, 1]]


def test_tie_is_decided_by_the_most_similar_center_of_each_group():
    centers = directions(0, 30, 70, 100)  # groups {0, 1} and {2, 3}: two votes each
    found = clusters(centers, [0, 0], [2, 2], [1, 1], [3, 3])
    assert fuse(found, directions(45, 60)[None]).tolist() == [[0, 1]]


def test_tie_of_equal_similarities_goes_to_the_lower_group():
    found = clusters(np.eye(2), [0, 0, 0], [1, 1, 1])
    tokens = np.array([[0, 1], [1, 1], [1, 0]], np.float16)  # the middle one is equally similar to both
    assert fuse(found, tokens[None]).tolist() == [[0, 1, 1]]


def test_labels_are_renumbered_by_first_appearance_in_reading_order():
    centers = np.eye(4, dtype=np.float32)
    masks = np.zeros((4, 2, 3), bool)
    for center, (y, x) in zip([3, 1, 3, 0, 1], [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], strict=True):
        masks[center, y, x] = True  # center 2 wins nowhere: its number is not left out but closed up
    found = Clusters(centers, masks, np.zeros(4, int))
    assert fuse(found, np.ones((2, 3, 4), np.float16)).tolist() == [[NOT_IGNORED, 0, 1], [0, 2, 1]]


def test_no_clusters_give_no_labels():
    found = Clusters(np.zeros((0, 4), np.float32), np.zeros((0, 2, 3), bool), np.zeros(0, int))
    assert (fuse(found, np.ones((2, 3, 4), np.float16)) == NOT_IGNORED).all()
