"""Crowded scenes: their statistics are those of COCO-Stuff photographs, and they keep the rules of all scenes."""

import hashlib
import pickle

import numpy as np
import pytest
from refusals import refused

from data_cache.class_list import class_lists
from data_cache.datasets import open_dataset
from data_cache.datasets.base import VOID
from data_cache.datasets.captions import caption
from data_cache.datasets.crowd import ABOVE, BY_FREQUENCY, CROWD, GROUND, SIDE, STANDING, THINGS, draw
from data_cache.datasets.scenes import SCENES
from data_cache.datasets.worlds import Scenes
from data_cache.errors import UsageError
from data_cache.splits import make_split

TRAIN = Scenes(CROWD, "train", 250)
LABELS = {"train": "e51a024c", "val": "fd981919", "tune": "5821ebba", "captioned": "232dbc8f"}
MEANS = {"train": 146.56, "val": 185.68, "tune": 115.38, "captioned": 125.91}
"""Label hash and mean pixel value of the first scene of each split."""
PRESENT = 0.001
"""Share of the picture from which a class counts as present (as in benchmarks/crowd_statistics.py)."""


@pytest.fixture(scope="module")
def labels():
    return [TRAIN.label(i) for i in range(len(TRAIN))]


@pytest.fixture(scope="module")
def shares(labels):
    return np.stack([np.bincount(label.ravel(), minlength=256)[: len(CROWD.classes)] for label in labels]) / SIDE**2


# -- statistics of photographs: COCO-Stuff's are 8.3 classes, 3.3 of them things with a median area of 2.7 % (quartiles
# 0.7 and 10.9 %); stuff covers 68.1 %, things 28.3 %; the top tenth of the things has 38 % of the occurrences


def test_six_to_twelve_classes_per_picture_as_in_photographs(shares):
    present = shares >= PRESENT
    assert 7.8 < present.sum(axis=1).mean() < 9.5
    assert 2.8 < present[:, len(CROWD.stuff) :].sum(axis=1).mean() < 3.8
    assert ((present.sum(axis=1) >= 6) & (present.sum(axis=1) <= 12)).mean() > 0.75


def test_things_have_the_areas_of_things_in_photographs(shares):
    things = shares[:, len(CROWD.stuff) :]
    low, median, high = np.percentile(100 * things[things >= PRESENT], (25, 50, 75))
    assert 0.5 < low < 1.1
    assert 2.0 < median < 3.5
    assert 8.0 < high < 14.0


def test_stuff_covers_two_thirds_of_the_pixels(shares):
    stuff, things = shares[:, : len(CROWD.stuff)].sum(axis=1), shares[:, len(CROWD.stuff) :].sum(axis=1)
    assert 0.62 < stuff.mean() < 0.74
    assert 0.24 < things.mean() < 0.36
    assert 0.01 < 1 - (stuff + things).mean() < 0.05


def test_class_frequencies_have_a_long_tail(shares):
    occurrences = (shares[:, len(CROWD.stuff) :] >= PRESENT).sum(axis=0)
    ranked = np.sort(occurrences)[::-1] / occurrences.sum()
    assert 0.28 < ranked[:2].sum() < 0.45
    assert 0.1 < ranked[len(ranked) // 2 :].sum() < 0.25
    assert occurrences.min() > 0
    assert np.argmax(occurrences) == 0
    assert np.corrcoef(occurrences, np.arange(len(occurrences)))[0, 1] < -0.6


def test_the_nearer_a_thing_the_larger_it_is(labels):
    rows, areas = [], []
    for label in labels:
        for k in range(len(CROWD.stuff), len(CROWD.classes)):
            if (area := (label == k).sum()) >= PRESENT * SIDE**2:
                rows.append(np.nonzero(label == k)[0].max())
                areas.append(np.log(area))
    assert np.corrcoef(rows, areas)[0, 1] > 0.4


# -- the rules of all scenes ---------------------------------------------------------------------------------------


def test_crowd_opens_by_name_without_a_root(tmp_path):
    dataset = open_dataset("crowd", None, "val", 5)
    assert (dataset.name, len(dataset), dataset.root, dataset.ids[4]) == ("crowd", 5, None, "val/000004")
    assert [len(open_dataset("crowd", None, split)) for split in CROWD.splits] == [*CROWD.splits.values()]
    refused(lambda: open_dataset("crowd", tmp_path, "val"), "omit --root", kind=UsageError)
    refused(lambda: open_dataset("crowd", None, "test"), "choose one", kind=UsageError)


def test_crowded_scenes_are_deterministic():
    image, label = draw(np.random.default_rng((0, *b"train", 7)))
    np.testing.assert_array_equal(TRAIN.image(7), image)
    np.testing.assert_array_equal(TRAIN.label(7), label)
    for dataset in (pickle.loads(pickle.dumps(TRAIN)), TRAIN.uncached(), open_dataset("crowd", None, "train", 8)):
        assert dataset.digest(7) == TRAIN.digest(7)
        assert dataset.sample(7).digest.image == hashlib.sha256(image.tobytes()).hexdigest()


def test_the_two_worlds_do_not_share_a_cached_scene():
    assert Scenes(SCENES, "train", 1).load(0).label.shape != TRAIN.load(0).label.shape


def test_labels_are_classes_and_void(labels):
    for i, label in enumerate(labels[:50]):
        image = TRAIN.image(i)
        assert (image.shape, image.dtype, label.dtype) == ((SIDE, SIDE, 3), np.uint8, np.uint8)
        assert set(np.unique(label)) <= {*range(len(CROWD.classes)), VOID}


def test_things_are_all_patterns_in_all_hues_and_unseen_ones_share_both_with_seen_ones():
    split = make_split("crowd", TRAIN.classes, None)
    assert TRAIN.classes == class_lists()["crowd"].classes == (*ABOVE, *GROUND, *STANDING, *THINGS)
    assert (len(split.classes), len(split.unseen)) == (40, 8)
    assert len(set(THINGS.values())) == len(THINGS) == len(set(BY_FREQUENCY)) == 24
    seen = [THINGS[name] for name in split.seen if name in THINGS]
    unseen = [THINGS[name] for name in split.unseen if name in THINGS]
    assert {thing.pattern for thing in seen} == {thing.pattern for thing in unseen}
    assert {thing.hue for thing in unseen} <= {thing.hue for thing in seen}


def test_unseen_stuff_is_that_of_coco_stuff():
    unseen = {name for name in make_split("crowd", TRAIN.classes, None).unseen if name in CROWD.stuff}
    assert unseen == set(CROWD.stuff) & set(class_lists()["coco"].unseen)


def test_captions_name_a_third_of_the_visible_classes(labels):
    rng, named, visible = np.random.default_rng(0), 0, 0
    for label in labels:
        names = {name for k, name in enumerate(CROWD.classes) if CROWD.visible_classes(label)[k]}
        words = set(caption(rng, CROWD, label).replace(",", " ").replace(".", " ").split()) & set(CROWD.classes)
        assert words
        assert words <= names
        named, visible = named + len(words), visible + len(names)
    assert 0.28 < named / visible < 0.42


def test_crowded_scenes_are_those_the_tiny_clip_was_trained_on():
    # other scenes need another tiny CLIP and new results: `python -m pipeline.tiny.train --world crowd`
    drawn = {split: Scenes(CROWD, split, 1).load(0) for split in CROWD.splits}
    assert {split: hashlib.sha256(label.tobytes()).hexdigest()[:8] for split, (_, label) in drawn.items()} == LABELS
    assert {split: image.mean() for split, (image, _) in drawn.items()} == pytest.approx(MEANS, abs=0.01)
