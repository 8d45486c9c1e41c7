"""Fusion: groups of similar centers (Algorithm 1) and one vote a scale."""

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
def test_groups_are_those_of_algorithm_1_in_which_a_selected_center_is_not_selected_again(seed, count, threshold):
    centers = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    assert members(group_centers(centers, threshold)) == oracle.groups(centers, threshold)


def test_printed_algorithm_1_puts_a_center_into_two_groups_and_ours_into_one():
    chain = directions(0, 30, 60)  # neighbors are similar (0.87), the ends are not (0.5)
    assert oracle.literal_groups(chain, 0.8) == [[0, 1], [1, 2], [2]]
    assert members(group_centers(chain, 0.8)) == [[0, 1], [2]]


def test_printed_and_our_algorithm_1_agree_where_groups_are_far_apart():
    # The printed one repeats a group for each of its members, less and less of it
    centers = directions(0, 90, 5, 95)
    assert oracle.literal_groups(centers, 0.8) == [[0, 2], [1, 3], [2], [3]]
    assert members(group_centers(centers, 0.8)) == [[0, 2], [1, 3]]


def test_the_first_free_center_seeds_a_group_and_not_the_one_with_most_neighbors():
    assert members(group_centers(directions(0, 30, 60, 25), 0.8)) == [[0, 1, 3], [2]]
    assert members(group_centers(directions(30, 0, 60, 25), 0.8)) == [[0, 1, 2, 3]]


def test_a_similarity_of_just_lambda_is_not_enough():
    centers = np.array([[1, 0], [0, 1]], np.float32)  # cosine exactly 0
    assert group_centers(centers, 0.0).tolist() == [0, 1]
    assert group_centers(centers, -0.01).tolist() == [0, 0]


def test_the_length_of_a_center_does_not_matter():
    centers = directions(0, 30, 60) * np.array([[0.01], [40], [3]], np.float32)
    assert group_centers(centers, 0.8).tolist() == [0, 0, 1]


def test_lambda_1_joins_no_distinct_centers_and_lambda_minus_1_joins_all():
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
def test_labels_equal_a_count_of_votes_token_by_token(seed, windows, threshold, share):
    ignored = np.random.default_rng(seed).random((9, 8)) < share
    dense = random_dense(seed, (9, 8))
    expected, found = np.full((9, 8), NOT_IGNORED), Clusters(np.zeros((0, 16)), np.zeros((0, 9, 8), bool), np.zeros(0))
    if ignored.any():
        centers, masks, scales = oracle.clusters(dense, ignored, windows, 1)
        expected = oracle.fused(centers, masks, scales, dense, threshold)
        found = Clusters(centers.astype(np.float32), masks, scales)
    labels = fuse(found, dense, threshold)
    np.testing.assert_array_equal(labels, expected)
    # What everyone relies on, whatever the votes were
    np.testing.assert_array_equal(labels >= 0, ignored)
    assert (labels[~ignored] == NOT_IGNORED).all()
    assert np.unique(labels[ignored]).tolist() == list(range(labels.max() + 1))


def test_with_one_scale_the_label_is_the_group_of_the_center():
    found = clusters(directions(0, 90, 10), [0, 1, 2, 1])
    assert fuse(found, directions(0, 90, 10, 80)[None]).tolist() == [[0, 1, 0, 1]]


def test_two_votes_beat_one_vote_of_a_more_similar_center():
    centers = directions(0, 5, 10, 90)  # the first three are one group
    found = clusters(centers, [0, 0], [1, 1], [2, 3])
    assert fuse(found, directions(0, 90)[None]).tolist() == [[0, 0]]


def test_a_tie_goes_to_the_vote_of_the_center_more_similar_to_the_token():
    found = clusters(directions(0, 10, 90), [0, 0, 0], [1, 2, 2])
    assert fuse(found, directions(0, 80, 40)[None]).tolist() == [[0, 1, 0]]


def test_closeness_only_decides_between_the_groups_with_most_votes():
    centers = directions(0, 2, 60, 62, 120)  # groups {0, 1}, {2, 3}, {4}
    found = clusters(centers, [0, 0], [1, 1], [2, 2], [3, 3], [4, 4])
    assert fuse(found, directions(100, 10)[None]).tolist() == [[0, 1]]


def test_the_closest_vote_of_a_group_speaks_for_it_in_a_tie():
    centers = directions(0, 30, 70, 100)  # groups {0, 1} and {2, 3}: two votes each
    found = clusters(centers, [0, 0], [2, 2], [1, 1], [3, 3])
    assert fuse(found, directions(45, 60)[None]).tolist() == [[0, 1]]


def test_a_tie_of_equally_similar_votes_goes_to_the_lower_group():
    found = clusters(np.eye(2), [0, 0, 0], [1, 1, 1])
    tokens = np.array([[0, 1], [1, 1], [1, 0]], np.float16)  # the middle one is as near to either
    assert fuse(found, tokens[None]).tolist() == [[0, 1, 1]]


def test_labels_are_renumbered_by_first_appearance_in_reading_order():
    centers = np.eye(4, dtype=np.float32)
    masks = np.zeros((4, 2, 3), bool)
    for center, (y, x) in zip([3, 1, 3, 0, 1], [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], strict=True):
        masks[center, y, x] = True  # center 2 wins nowhere: its number is not left out but closed up
    found = Clusters(centers, masks, np.zeros(4, int))
    assert fuse(found, np.ones((2, 3, 4), np.float16)).tolist() == [[NOT_IGNORED, 0, 1], [0, 2, 1]]


def test_without_clusters_no_token_has_a_label():
    found = Clusters(np.zeros((0, 4), np.float32), np.zeros((0, 2, 3), bool), np.zeros(0, int))
    assert (fuse(found, np.ones((2, 3, 4), np.float16)) == NOT_IGNORED).all()
