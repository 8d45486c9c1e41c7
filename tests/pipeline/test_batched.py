"""Batched k-means and fusion: equal to those of single images, whatever else is in the batch."""

import os
from pathlib import Path

import numpy as np
import oracle_masks as oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_inputs import random_dense

from data_cache.datasets.decode import decode_image
from data_cache.sample import crop_image
from data_cache.splits import Split
from data_cache.views import whole
from pipeline.masks.batched import cluster_batch, fuse_batch
from pipeline.masks.fusion import adjusted_rand_index, fuse
from pipeline.masks.kmeans import assign_faiss, cluster
from pipeline.masks.masker import Masker
from pipeline.teacher.clip import BATCH, FrozenCLIP
from pipeline.teacher.weights import CLIPSource

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
EVERYTHING = Split(("sky",), ("sky",))


def batch_of(seed, grid, shares):
    rng = np.random.default_rng(seed)
    ignored = np.stack([rng.random(grid) < share for share in shares])
    return np.stack([random_dense(seed + index, grid) for index in range(len(shares))]), ignored


def clustered(dense, ignored, device="cpu", **options):
    return cluster_batch(torch.from_numpy(dense).to(device), torch.from_numpy(ignored).to(device), **options)


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 11), st.integers(1, 9)),
    st.lists(st.sampled_from([0, 0.05, 0.5, 1]), min_size=1, max_size=3),
    st.sampled_from([(3, 7), (2, 3, 5)]),
    st.sampled_from([-1, 0.3, 0.8, 0.97]),
)
def test_batched_clusters_and_labels_equal_a_float64_reference(device, seed, grid, shares, windows, threshold):
    dense, ignored = batch_of(seed, grid, shares)
    clusters = clustered(dense, ignored, device, windows=windows)
    labels = fuse_batch(clusters, threshold).cpu().numpy()
    for index in range(len(shares)):
        expected = np.full(grid, -1)
        if ignored[index].any():
            centers, masks, scale = oracle.clusters(dense[index], ignored[index], windows)
            found = clusters.view(index, grid)
            np.testing.assert_allclose(found.centers, centers, atol=1e-5)
            np.testing.assert_array_equal(found.masks, masks)
            np.testing.assert_array_equal(found.scale, scale)
            expected = oracle.fused(centers, masks, scale, dense[index], threshold)
        np.testing.assert_array_equal(labels[index].reshape(grid), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_labels_do_not_depend_on_the_batch(device):
    masker = Masker(EVERYTHING, (16, 16), kmeans="torch", device=device)
    dense = np.stack([random_dense(seed, (16, 16)) for seed in range(2 * BATCH[device] + 1)])
    labels = [None] * len(dense)
    together = masker(dense, labels)[0]
    np.testing.assert_array_equal(masker(dense, labels)[0], together)
    order = np.random.default_rng(0).permutation(len(dense))
    np.testing.assert_array_equal(masker(dense[order], labels)[0], together[order])
    for index in (0, len(dense) - 1):
        np.testing.assert_array_equal(masker(dense[index : index + 1], [None])[0][0], together[index])


def test_equal_centers_and_zero_tokens_match_the_loops():
    dense = np.tile(np.array([1, 2, 3], np.float16), (1, 7, 7, 1))  # nine equal centers: the first takes all tokens
    dense[0, 3, 4] = 0
    ignored = np.ones((1, 7, 7), bool)
    expected = fuse(cluster(dense[0], ignored[0], assign_faiss), dense[0])
    labels = fuse_batch(clustered(dense, ignored)).numpy().reshape(7, 7)
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_torch_and_faiss_agree_on_real_images(device, capsys):
    """Rounding may move a token between two centers to the other one: hence an index instead of equality."""
    root = os.environ.get("CLIPTEACHER_TEST_DATA")
    if not root:
        pytest.skip("CLIPTEACHER_TEST_DATA is not set")
    clip = FrozenCLIP(CLIPSource("tiny", image_size=256), "fp32", torch.device("cpu"))
    files = sorted(Path(root, "coco").rglob("*.jpg"))[:32]
    images = [decode_image(file) for file in files]
    views = [crop_image(image, whole(*image.shape[:2]), clip.image_size) for image in images]
    dense = np.concatenate([clip.encode(np.stack(views[start : start + 4])).dense for start in range(0, len(views), 4)])
    found = [
        Masker(EVERYTHING, clip.grid, threshold=0.9, kmeans=kmeans, device=device)(dense, [None] * len(dense))[0]
        for kmeans in ("faiss", "torch")
    ]
    agreement = [adjusted_rand_index(a.ravel(), b.ravel()) for a, b in zip(*found, strict=True)]
    with capsys.disabled():
        print(f"adjusted Rand index of torch and FAISS: least {min(agreement):.4f}, mean {np.mean(agreement):.4f}")
    assert max(label.max() for label in found[0]) > 3
    assert np.mean(agreement) >= 0.99
    assert min(agreement) >= 0.95
