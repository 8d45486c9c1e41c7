"""Spherical k-means on the ignored tokens: window centers, Lloyd's updates, the scales, and FAISS."""

import faiss
import numpy as np
import oracle_masks as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from tiny_inputs import random_dense

from data_cache.errors import UsageError
from pipeline.masks.kmeans import (
    assign_faiss,
    backend_name,
    cluster,
    max_centers,
    normalized,
    spherical_kmeans,
    window_centers,
)


def case(seed, grid=(10, 8), share=0.6):
    ignored = np.random.default_rng(seed).random(grid) < share
    return random_dense(seed, grid), ignored


def assert_same_clusters(found, expected):
    centers, masks, scales = expected
    np.testing.assert_allclose(found.centers, centers, atol=1e-5)
    np.testing.assert_array_equal(found.masks, masks)
    np.testing.assert_array_equal(found.scale, scales)


# -- initial centers (eq. 5) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_initial_centers_are_normalized_window_means(window, share):
    dense, ignored = case(window, (10, 8), share)
    centers = window_centers(normalized(dense[ignored]), ignored, window)
    np.testing.assert_allclose(centers, oracle.window_means(dense, ignored, window), atol=1e-6)


def test_window_means_average_directions():
    dense = np.array([[[100.0, 0.0], [0.0, 1.0]]], np.float16)
    found = cluster(dense, np.ones((1, 2), bool), assign_faiss, (3,))
    np.testing.assert_allclose(found.centers, [[0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_windows_are_in_reading_order_and_empty_ones_have_no_center():
    tokens = np.eye(16, dtype=np.float32).reshape(4, 4, 16)
    ignored = np.zeros((4, 4), bool)
    ignored[0, 3] = ignored[3, 0] = ignored[2, 2] = True  # top right, bottom left, bottom right; none top left
    assert window_centers(tokens[ignored], ignored, 2).argmax(axis=1).tolist() == [3, 12, 10]


def test_window_mean_excludes_tokens_that_are_not_ignored():
    tokens = np.eye(4, dtype=np.float32).reshape(2, 2, 4)
    ignored = np.array([[True, False], [False, True]])
    centers = window_centers(tokens[ignored], ignored, 2)
    np.testing.assert_allclose(centers, [[0.5**0.5, 0, 0, 0.5**0.5]], atol=1e-6)


# -- Lloyd's algorithm ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 11), st.integers(1, 9), st.sampled_from([0.2, 0.7, 1.0]))
def test_clusters_equal_a_float64_lloyd_loop(seed, height, width, share):
    dense, ignored = case(seed, (height, width), share)
    if ignored.any():
        assert_same_clusters(cluster(dense, ignored, assign_faiss), oracle.clusters(dense, ignored))


def test_kmeans_has_ten_updates_and_a_last_assignment():
    rng = np.random.default_rng(3)
    points = oracle.unit(rng.normal(size=(600, 4))).astype(np.float32)
    start = points[:12]
    after = {updates: oracle.lloyd(points.astype(float), start.astype(float), updates) for updates in (9, 10, 11)}
    for other in (9, 11):  # one update more or less must make a difference
        assert np.abs(after[other][0] - after[10][0]).max() > 1e-3
        assert (after[other][1] != after[10][1]).any()
    centers, labels = spherical_kmeans(points, start, assign_faiss)
    np.testing.assert_allclose(centers, after[10][0], atol=1e-5)
    np.testing.assert_array_equal(labels, after[10][1])


def test_centers_have_unit_length():
    dense, ignored = case(1)
    np.testing.assert_allclose(np.linalg.norm(cluster(dense, ignored, assign_faiss).centers, axis=1), 1, atol=1e-6)


def test_empty_center_is_dropped():
    points = oracle.unit([[1, 0, 0.1], [1, 0, -0.1], [0, 1, 0.1], [0, 1, -0.1]]).astype(np.float32)
    start = np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], np.float32)
    centers, labels = spherical_kmeans(points, start, assign_faiss)
    np.testing.assert_allclose(centers, [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    assert labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("seed", [310, 335, 820])
def test_center_emptied_by_a_later_update_is_dropped(seed):
    rng = np.random.default_rng(seed)
    points, start = oracle.unit(rng.normal(size=(12, 3))), oracle.unit(rng.normal(size=(5, 3)))
    assert len(oracle.lloyd(points, start, 1)[0]) == 5
    centers, labels = spherical_kmeans(points.astype(np.float32), start.astype(np.float32), assign_faiss)
    assert len(centers) == 4
    np.testing.assert_array_equal(labels, oracle.lloyd(points, start)[1])


def test_duplicate_centers_are_dropped():
    dense = np.tile(np.array([1, 2, 3], np.float16), (7, 7, 1))  # nine windows of side 3 give nine equal centers
    found = cluster(dense, np.ones((7, 7), bool), assign_faiss, (3, 7))
    assert found.scale.tolist() == [0, 1]
    assert found.masks.all()


def test_planted_clusters_are_recovered():
    rows, columns = np.indices((12, 12))
    planted = 2 * (rows >= 7) + (columns >= 5)  # across the windows' borders
    rng = np.random.default_rng(0)
    dense = (3 * np.eye(8)[planted] + 0.2 * rng.normal(size=(12, 12, 8))).astype(np.float16)
    found = cluster(dense, np.ones((12, 12), bool), assign_faiss, (6,))
    np.testing.assert_array_equal(found.masks.argmax(axis=0), planted)


# -- ignored tokens and scales -------------------------------------------------------------------------------------


def test_only_ignored_tokens_are_clustered():
    dense, ignored = case(5)
    other = np.where(ignored[..., None], dense, random_dense(99, ignored.shape))
    assert (other != dense).any()
    one, two = cluster(dense, ignored, assign_faiss), cluster(other, ignored, assign_faiss)
    np.testing.assert_array_equal(one.centers, two.centers)
    np.testing.assert_array_equal(one.masks, two.masks)
    assert not one.masks[:, ~ignored].any()


def test_each_ignored_token_is_in_one_mask_of_each_scale():
    dense, ignored = case(6)
    found = cluster(dense, ignored, assign_faiss)
    for scale in (0, 1):
        np.testing.assert_array_equal(found.masks[found.scale == scale].sum(axis=0), ignored)


def test_scales_are_clustered_independently():
    dense, ignored = case(7)
    both = cluster(dense, ignored, assign_faiss, (3, 7))
    for scale, window in enumerate((3, 7)):
        alone = cluster(dense, ignored, assign_faiss, (window,))
        np.testing.assert_array_equal(both.centers[both.scale == scale], alone.centers)
        np.testing.assert_array_equal(both.masks[both.scale == scale], alone.masks)


def test_no_ignored_tokens_give_no_centers():
    found = cluster(random_dense(0), np.zeros((8, 8), bool), assign_faiss)
    assert found.centers.shape == (0, 16)
    assert found.masks.shape == (0, 8, 8)
    assert found.scale.shape == (0,)


def test_single_ignored_token_is_its_own_center_at_each_scale():
    dense, ignored = random_dense(0), np.zeros((8, 8), bool)
    ignored[5, 2] = True
    expected = oracle.unit(dense[5, 2])[None].repeat(2, 0), [ignored] * 2, [0, 1]
    assert_same_clusters(cluster(dense, ignored, assign_faiss), expected)


def test_single_window_gives_one_cluster_at_the_mean():
    dense, ignored = case(8)
    found = cluster(dense, ignored, assign_faiss, (10,))
    np.testing.assert_array_equal(found.masks, ignored[None])
    np.testing.assert_allclose(found.centers[0], oracle.unit(oracle.unit(dense)[ignored].mean(axis=0)), atol=1e-6)


def test_clustering_is_stateless_and_does_not_modify_its_input():
    dense, ignored = case(9)
    copy = dense.copy()
    first = cluster(dense, ignored, assign_faiss)
    cluster(*case(10), assign_faiss)
    again = cluster(dense, ignored, assign_faiss)
    np.testing.assert_array_equal(first.centers, again.centers)
    np.testing.assert_array_equal(first.masks, again.masks)
    np.testing.assert_array_equal(dense, copy)


@pytest.mark.parametrize(
    ("grid", "windows", "most"), [((32, 32), (3, 7), 121 + 25), ((8, 9), (3,), 9), ((1, 1), (7,), 1)]
)
def test_max_centers_is_the_number_of_windows(grid, windows, most):
    assert max_centers(grid, windows) == most
    ignored = np.ones(grid, bool)
    points = normalized(random_dense(0, grid)[ignored])
    assert sum(len(window_centers(points, ignored, window)) for window in windows) == most


# -- FAISS ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 150), st.sampled_from([2, 16, 64]))
def test_faiss_assigns_to_the_center_with_the_greatest_inner_product(seed, points, centers, channels):
    rng = np.random.default_rng(seed)
    a, b = (normalized(rng.normal(size=(n, channels))) for n in (points, centers))
    np.testing.assert_array_equal(assign_faiss(a, b), (a.astype(float) @ b.astype(float).T).argmax(axis=1))


def test_faiss_uses_inner_products_not_distances():
    assert assign_faiss(np.array([[1, 0]], np.float32), np.array([[1, 0], [3, 0]], np.float32)).tolist() == [1]


@pytest.mark.parametrize("points", [1, 19, 20, 21, 64, 1024])
@pytest.mark.parametrize("copies", [2, 3, 25])
def test_faiss_assigns_ties_to_the_lower_index(points, copies):
    # from 20 queries on, FAISS uses BLAS instead of loops
    rng = np.random.default_rng(points)
    a, b = normalized(rng.normal(size=(points, 32))), normalized(rng.normal(size=(5, 32)))
    expected = (a.astype(float) @ b.astype(float).T).argmax(axis=1)
    np.testing.assert_array_equal(assign_faiss(a, np.concatenate([b] * copies)), expected)


@pytest.mark.parametrize("works", [True, False])
def test_faiss_call_restores_thread_counts(works):
    # depending on their builds, the two share an OpenMP runtime or not
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    points = np.eye(4, dtype=np.float32)
    try:
        torch.set_num_threads(3)
        faiss.omp_set_num_threads(3)
        if works:
            assign_faiss(points, points)
        else:
            with pytest.raises(AssertionError):
                assign_faiss(points, points[:, :2].copy())
        assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == (3, 3)
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


def test_faiss_searches_on_one_thread(monkeypatch):
    seen, search = [], faiss.knn

    def knn(*args, **options):
        seen.append(faiss.omp_get_max_threads())
        return search(*args, **options)

    monkeypatch.setattr(faiss, "knn", knn)
    before = faiss.omp_get_max_threads()
    try:
        faiss.omp_set_num_threads(2)
        assign_faiss(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32))
    finally:
        faiss.omp_set_num_threads(before)
    assert seen == [1]


def test_auto_backend_is_faiss_on_a_cpu_and_torch_on_a_gpu(monkeypatch):
    assert backend_name("auto", "cpu") == backend_name("faiss", "cuda") == "faiss"
    assert backend_name("auto", "cuda:1") == backend_name("torch", "cpu") == "torch"
    refused(lambda: backend_name("kmeans++", "cpu"), "--kmeans kmeans++", "faiss", "torch", kind=UsageError)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    refused(lambda: backend_name("faiss-gpu", "cuda"), "--kmeans faiss-gpu", "--kmeans faiss", kind=UsageError)
