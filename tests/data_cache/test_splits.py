"""Splits by class name; the numbers here are the published ones, independent of the code."""

import dataclasses
import pickle

import numpy as np
import pytest

from data_cache.class_list import class_lists
from data_cache.errors import UsageError
from data_cache.splits import Split, make_split

COCO_UNSEEN_RAW_IDS = [20, 24, 32, 33, 40, 56, 86, 99, 105, 123, 144, 147, 148, 168, 171]
COCO_MISSING_RAW_IDS = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90]
COLORS = ("red", "green", "blue", "light blue")


def published(name: str) -> Split:
    return make_split(name, class_lists()[name].classes, None)


@pytest.mark.parametrize(
    ("name", "seen", "unseen"), [("voc", 15, 5), ("context", 49, 10), ("coco", 156, 15), ("camvid", 8, 3)]
)
def test_published_splits_have_the_published_counts(name, seen, unseen):
    split = published(name)
    assert (len(split.seen), len(split.unseen)) == (seen, unseen)
    assert len(set(split.classes)) == seen + unseen


def test_coco_unseen_names_match_the_published_raw_ids():
    split = published("coco")
    raw_ids = [raw for raw in range(182) if raw not in COCO_MISSING_RAW_IDS]
    raw_of = dict(zip(split.classes, raw_ids, strict=True))
    assert [raw_of[name] for name in split.unseen] == COCO_UNSEEN_RAW_IDS
    assert sorted(class_lists()["coco"].missing_raw_ids) == COCO_MISSING_RAW_IDS


def test_voc_hides_its_last_five_classes():
    assert published("voc").unseen_index.tolist() == [15, 16, 17, 18, 19]


def test_context_hides_the_published_classes():
    split = published("context")
    assert list(split.classes) == sorted(split.classes)
    assert split.unseen_index.tolist() == [0, 6, 7, 14, 19, 24, 31, 33, 48, 54]
    assert set(split.unseen) == {
        "cow", "motorbike", "sofa", "cat", "boat", "fence", "bird", "tvmonitor", "keyboard", "aeroplane",
    }  # fmt: skip


def test_camvid_hides_fence_car_and_bicyclist():
    assert published("camvid").unseen == ("fence", "car", "bicyclist")


@pytest.mark.parametrize("name", ["voc", "coco", "context", "camvid"])
def test_published_class_names_have_no_comma_or_outer_spaces(name):
    assert all("," not in known and known == known.strip() for known in class_lists()[name].classes)


def test_unseen_names_are_stripped_deduplicated_and_in_class_order():
    split = make_split("folder", COLORS, " light blue,green , light blue,")
    assert split.unseen == ("green", "light blue")
    assert split == Split(COLORS, ("light blue", "green"))


def test_indices_and_flags_match_the_names():
    split = Split(COLORS, ("green", "light blue"))
    assert split.seen == ("red", "blue")
    assert split.is_seen.tolist() == [True, False, True, False]
    assert split.seen_index.tolist() == [0, 2]
    assert split.unseen_index.tolist() == [1, 3]
    assert split.is_seen.dtype == bool


def test_seen_rank_counts_seen_classes_and_is_255_elsewhere():
    table = Split(COLORS, ("green",)).seen_rank()
    assert table.dtype == np.uint8
    assert table[:4].tolist() == [0, 255, 1, 2]
    assert (table[4:] == 255).all()
    assert table.shape == (256,)


@pytest.mark.parametrize("unseen", [1, 3, 12])
def test_hidden_pixels_are_the_same_whether_the_values_that_occur_are_known_or_not(unseen):
    names = tuple(map(str, range(20)))
    split, rng = Split(names, names[:unseen]), np.random.default_rng(unseen)
    label = rng.choice([*range(20), 255], (30, 40)).astype(np.uint8)
    expected = (label < unseen) | (label == 255)
    np.testing.assert_array_equal(split.is_hidden(label), expected)
    np.testing.assert_array_equal(split.is_hidden(label, np.unique(label)), expected)
    np.testing.assert_array_equal(split.is_hidden(label, np.arange(256)), expected)
    seen = np.full((2, 3), 19, np.uint8)
    assert not split.is_hidden(seen, np.array([19])).any()


def test_empty_unseen_list_hides_nothing():
    split = make_split("coco", class_lists()["coco"].classes, "")
    assert split.unseen == ()
    assert split.unseen_index.tolist() == []
    assert len(split.seen) == 171


def test_unknown_class_error_suggests_the_closest_name():
    with pytest.raises(UsageError) as error:
        make_split("coco", class_lists()["coco"].classes, "cow,rode")
    assert str(error.value) == "--unseen: no class named 'rode' in coco; did you mean 'road'?"


@pytest.mark.parametrize(("typed", "meant"), [("Cow", "'cow'"), ("sky", "'sky-other'"), ("light-blue", "'light blue'")])
def test_suggestion_ignores_case_and_matches_substrings(typed, meant):
    with pytest.raises(UsageError, match=meant):
        make_split("any", ("cow", "sky-other", "light blue"), typed)


def test_unknown_class_error_lists_classes_if_none_is_close():
    with pytest.raises(
        UsageError, match=r"no class named 'qqq' in folder; its 4 classes are red, green, blue and 1 more"
    ):
        make_split("folder", COLORS, "qqq")


def test_hiding_every_class_is_rejected():
    with pytest.raises(UsageError, match="all 4 classes"):
        make_split("folder", COLORS, ",".join(COLORS))


def test_dataset_without_published_split_requires_unseen():
    with pytest.raises(UsageError, match='pass --unseen "name,name"'):
        make_split("folder", COLORS, None)


def test_splits_are_picklable_and_immutable():
    split = Split(COLORS, ("green",))
    assert pickle.loads(pickle.dumps(split)) == split
    with pytest.raises(dataclasses.FrozenInstanceError):
        split.unseen = ()


def test_unknown_unseen_class_raises_value_error():
    with pytest.raises(ValueError, match="pink"):
        Split(COLORS, ("pink",))
