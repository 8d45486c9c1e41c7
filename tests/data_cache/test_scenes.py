"""Synthetic scenes: deterministic, densely labelled, partly captioned, and not classifiable by color alone."""

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest
from refusals import refused

from data_cache.class_list import class_lists
from data_cache.datasets import open_dataset
from data_cache.datasets.base import VOID
from data_cache.datasets.captions import caption
from data_cache.datasets.scenes import SCENES, SIDE, STUFF, THINGS, draw
from data_cache.datasets.worlds import Scenes
from data_cache.errors import UsageError
from data_cache.splits import make_split

TRAIN = Scenes(SCENES, "train", 300)
LABELS = {"train": "1ad5cedd", "val": "1e455400", "tune": "d6398ed6", "captioned": "85d3d46b"}
MEANS = {"train": 112.56, "val": 135.31, "tune": 126.52, "captioned": 150.10}
"""Label hash and mean pixel value of the first scene of each split."""


@pytest.fixture(scope="module")
def scenes():
    return [TRAIN.load(i) for i in range(len(TRAIN))]


def names_in(label):
    counts = np.bincount(label.ravel(), minlength=256)
    return {name for k, name in enumerate(TRAIN.classes) if counts[k] >= SCENES.visible_pixels}


def test_scenes_open_by_name_without_a_root():
    dataset = open_dataset("scenes", None, "val", 5)
    assert (len(dataset), dataset.root, dataset.ids[4]) == (5, None, "val/000004")
    assert [len(open_dataset("scenes", None, split)) for split in SCENES.splits] == [*SCENES.splits.values()]


@pytest.mark.parametrize(("root", "split", "word"), [("here", "train", "omit --root"), (None, "test", "choose one")])
def test_root_or_unknown_split_is_a_usage_error(tmp_path, root, split, word):
    refused(lambda: open_dataset("scenes", root and tmp_path, split), word, kind=UsageError)


def test_scenes_are_deterministic():
    image, label = draw(np.random.default_rng((0, *b"train", 7)))
    np.testing.assert_array_equal(TRAIN.image(7), image)
    np.testing.assert_array_equal(TRAIN.label(7), label)
    unpickled = pickle.loads(pickle.dumps(TRAIN))
    for dataset in (TRAIN, unpickled, TRAIN.subset(range(8)), open_dataset("scenes", None, "train")):
        assert dataset.digest(7) == TRAIN.digest(7)
    assert TRAIN.digest(7)[0] == hashlib.sha256(image.tobytes()).hexdigest()


def test_scenes_differ_across_splits_and_seeds():
    drawn = [Scenes(SCENES, split, 3, seed).digest(i) for split in SCENES.splits for seed in (0, 1) for i in range(3)]
    assert len(set(drawn)) == len(drawn)


def test_unseen_things_share_their_pattern_and_hue_with_seen_ones():
    split = make_split("scenes", TRAIN.classes, None)
    assert TRAIN.classes == class_lists()["scenes"].classes == (*STUFF, *THINGS)
    assert len(THINGS) >= 12
    assert len(STUFF) >= 5
    assert set(split.unseen) <= set(THINGS)
    # neither pattern nor hue identifies an unseen thing: seen things share them
    seen = [THINGS[name] for name in split.seen if name in THINGS]
    unseen = [THINGS[name] for name in split.unseen]
    assert {thing.pattern for thing in seen} == {thing.pattern for thing in unseen}
    assert len({thing.pattern for thing in unseen}) == len(unseen)
    assert {thing.hue for thing in unseen} <= {thing.hue for thing in seen}
    assert {*Counter(thing.hue for thing in THINGS.values()).values()} == {2}


def test_labels_are_dense_except_for_a_few_void_spots(scenes):
    voids = []
    for image, label in scenes:
        assert image.shape == (SIDE, SIDE, 3)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(len(TRAIN.classes)), VOID}
        voids.append((label == VOID).mean())
    assert 0.001 < np.mean(voids) < 0.03


def test_every_class_is_frequent_enough_to_learn(scenes):
    share = {name: np.mean([name in names_in(label) for _, label in scenes]) for name in TRAIN.classes}
    assert min(share.values()) > 0.08


def test_captions_name_a_subset_of_the_visible_classes(scenes):
    rng = np.random.default_rng(0)
    complete, all_named = [], set()
    for _, label in scenes:
        named = set(caption(rng, SCENES, label).replace(",", " ").replace(".", " ").split()) & set(TRAIN.classes)
        assert named
        assert named <= names_in(label)
        complete.append(named == names_in(label))
        all_named |= named
    assert 0.05 < np.mean(complete) < 0.5
    assert all_named == set(TRAIN.classes)


def test_mean_color_does_not_identify_a_class(scenes):
    colors, classes = [], []
    for image, label in scenes:
        for k in range(len(STUFF), len(TRAIN.classes)):
            if (label == k).sum() >= SCENES.visible_pixels:
                colors.append(image[label == k].mean(axis=0) / 255)
                classes.append(k - len(STUFF))
    features = (np.array(colors) - np.mean(colors, axis=0)) / np.std(colors, axis=0)
    features, half = np.column_stack([features, np.ones(len(features))]), len(features) // 2
    targets, weights = np.eye(len(THINGS))[classes], np.zeros((4, len(THINGS)))
    for _ in range(2000):  # softmax regression
        scores = np.exp(features[:half] @ weights)
        probabilities = scores / scores.sum(axis=1, keepdims=True)
        weights -= 0.5 * features[:half].T @ (probabilities - targets[:half]) / half
    correct = (features[half:] @ weights).argmax(axis=1) == np.array(classes[half:])
    # color identifies the range of hues, which two things share, and nothing more
    assert 2 / len(THINGS) < correct.mean() < 0.6


def test_scenes_are_those_the_tiny_clip_was_trained_on():
    # other scenes need another tiny CLIP and new results: `python -m pipeline.tiny.train`
    drawn = {split: Scenes(SCENES, split, 1).load(0) for split in SCENES.splits}
    assert {split: hashlib.sha256(label.tobytes()).hexdigest()[:8] for split, (_, label) in drawn.items()} == LABELS
    assert {split: image.mean() for split, (image, _) in drawn.items()} == pytest.approx(MEANS, abs=0.01)
