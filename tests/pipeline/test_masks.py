"""Pseudo masks: which tokens are ignored, and what is stored."""

import numpy as np
import oracle_masks as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from tiny_inputs import random_dense

from data_cache.errors import UsageError
from data_cache.splits import Split
from pipeline.masks.masker import Masker, ignored_tokens

SPLIT = Split(("sky", "road", "tree", "gnome"), ("tree",))
VOID, SEEN, UNSEEN = 255, 1, 2


def masks_of(masker, dense, label):
    """The labels of one view and their number."""
    stored, count = masker(dense[None], [label])
    return stored[0], int(count[0])


def patch(*values):
    """A 4 x 4 patch of these values, filled up with a seen class."""
    return np.array([*values, *[SEEN] * (16 - len(values))], np.uint8).reshape(4, 4)


# -- ignored tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ignored", "expected"), [(0, False), (7, False), (8, True), (9, True), (16, True)])
@pytest.mark.parametrize("value", [VOID, UNSEEN])
def test_token_is_ignored_if_half_of_its_patch_is(ignored, expected, value):
    assert ignored_tokens(patch(*[value] * ignored), SPLIT, (1, 1)).tolist() == [[expected]]


def test_void_and_unseen_pixels_are_counted_together():
    assert ignored_tokens(patch(*[VOID] * 4, *[UNSEEN] * 4), SPLIT, (1, 1)).all()
    assert not ignored_tokens(patch(*[VOID] * 4, *[UNSEEN] * 3), SPLIT, (1, 1)).any()


def test_all_tokens_are_ignored_without_a_label_map():
    assert ignored_tokens(None, SPLIT, (3, 5)).all()
    assert ignored_tokens(None, SPLIT, (3, 5)).shape == (3, 5)


def test_patches_map_to_tokens_by_position():
    label = np.full((8, 12), SEEN, np.uint8)
    label[4:, 8:] = VOID
    assert np.argwhere(ignored_tokens(label, SPLIT, (2, 3))).tolist() == [[1, 2]]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_ignored_tokens_equal_the_reference(seed, rows, columns, height, width):
    label = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (rows * height, columns * width)).astype(np.uint8)
    expected = oracle.ignored_tokens(label, {UNSEEN}, (rows, columns))
    np.testing.assert_array_equal(ignored_tokens(label, SPLIT, (rows, columns)), expected)


# -- Masker --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kmeans", ["faiss", "torch"])
@pytest.mark.parametrize("windows", [(3,), (3, 7), (2, 3, 5)])
@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_masker_combines_ignored_tokens_clustering_and_fusion(windows, threshold, kmeans):
    grid, rng = (9, 8), np.random.default_rng(5)
    label = rng.choice([0, 1, 2, 255], (36, 32), p=[0.3, 0.2, 0.3, 0.2]).astype(np.uint8)
    dense = random_dense(5, grid)
    ignored = oracle.ignored_tokens(label, {UNSEEN}, grid)
    assert 0 < ignored.sum() < ignored.size
    expected = oracle.fused(*oracle.clusters(dense, ignored, windows), dense, threshold)
    stored, count = masks_of(Masker(SPLIT, grid, windows, threshold, kmeans=kmeans), dense, label)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(np.where(expected < 0, 255, expected), stored)
    assert count == len(np.unique(expected[ignored]))


@pytest.mark.parametrize("kmeans", ["faiss", "torch"])
def test_number_of_updates_is_used(kmeans):
    dense = random_dense(2, (12, 12))
    maps = []
    for updates in (1, 10):
        clusters = oracle.clusters(dense, np.ones((12, 12), bool), (3, 7), updates)
        maps.append(oracle.fused(*clusters, dense))
        found, _ = masks_of(Masker(SPLIT, (12, 12), updates=updates, kmeans=kmeans), dense, None)
        np.testing.assert_array_equal(found, maps[-1])
    assert (maps[0] != maps[1]).any()


@pytest.mark.parametrize("kmeans", ["faiss", "torch"])
def test_image_without_ignored_tokens_has_no_labels(kmeans):
    masker = Masker(SPLIT, (8, 8), kmeans=kmeans)
    stored, count = masks_of(masker, random_dense(0), np.full((32, 32), SEEN, np.uint8))
    assert (stored == 255).all()
    assert stored.dtype == np.uint8
    assert count == 0


def distinct(count):
    """Tokens on an arc of the circle: every one is its own cluster."""
    angles = np.linspace(0, 5, count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1)[None].astype(np.float16)


@pytest.mark.parametrize("kmeans", ["faiss", "torch"])
@pytest.mark.parametrize(
    ("tokens", "dtype", "reserved"), [(253, "uint8", 255), (254, "uint8", 255), (255, "uint16", 65535)]
)
def test_labels_are_uint16_from_255_labels_on(tokens, dtype, reserved, kmeans):
    masker = Masker(SPLIT, (1, tokens), windows=(1,), threshold=1.0, kmeans=kmeans)
    stored, count = masks_of(masker, distinct(tokens), None)
    assert masker.dtype == stored.dtype.name == dtype
    assert masker.attributes()["dtype"] == dtype
    assert stored.ravel().tolist() == list(range(tokens))
    assert count == tokens
    assert (masks_of(masker, distinct(tokens), np.zeros((2, 2 * tokens), np.uint8))[0] == reserved).all()


def test_labels_of_the_papers_grid_are_uint8():
    assert Masker(SPLIT, (32, 32)).dtype == "uint8"  # 121 + 25 centers


def test_mask_attributes_default_to_the_settings_of_the_paper():
    assert Masker(SPLIT, (8, 8)).attributes() == {
        "unseen": ["tree"],
        "windows": [3, 7],
        "threshold": 0.8,
        "updates": 10,
        "backend": "faiss",
        "dtype": "uint8",
    }
    changed = Masker(SPLIT, (8, 8), (2,), 0.5, 3, "faiss").attributes()
    assert (changed["windows"], changed["threshold"], changed["updates"]) == ([2], 0.5, 3)


def test_unknown_backend_is_refused():
    refused(lambda: Masker(SPLIT, (8, 8), kmeans="magic").attributes(), "--kmeans magic", kind=UsageError)


@pytest.mark.parametrize("kmeans", ["faiss", "torch"])
def test_masks_do_not_depend_on_other_views(kmeans):
    masker, views = Masker(SPLIT, (8, 8), kmeans=kmeans), np.stack([random_dense(seed) for seed in range(6)])
    labels = [None, np.full((32, 32), VOID, np.uint8), np.full((32, 32), SEEN, np.uint8), None, None, None]
    together, counts = masker(views, labels)
    for index in (4, 0, 1, 2, 3, 5):
        alone, count = masks_of(Masker(SPLIT, (8, 8), kmeans=kmeans), views[index], labels[index])
        np.testing.assert_array_equal(together[index], alone)
        assert counts[index] == count
    assert counts.max() > 1
