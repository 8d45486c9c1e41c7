"""Class names that CLIP cannot tell apart."""

import numpy as np

from data_cache.content import indistinguishable_classes, text_problems


def features(rows, channels=64):
    return np.random.default_rng(0).normal(size=(rows, channels)).astype(np.float32)


def test_parallel_features_are_grouped_up_to_rounding():
    text = features(6)
    text[4], text[5] = 3 * text[1], text[1] * (1 + 1e-6)
    text[3] = text[0]
    assert indistinguishable_classes("abcdef", text) == [("a", "d"), ("b", "e", "f")]


def test_similar_features_are_not_grouped():
    text = features(3)
    text[1] = text[0] + 0.1 * text[2]
    assert indistinguishable_classes("abc", text) == []
    assert text_problems("abc", text) == []


def test_nearly_equal_features_are_grouped():
    text = features(3)
    text[1] = text[0] + 0.01 * text[2]
    assert indistinguishable_classes("abc", text) == [("a", "b")]


def test_single_names_form_no_group_and_all_names_may_form_one():
    assert indistinguishable_classes("a", features(1)) == []
    assert indistinguishable_classes("abcde", np.repeat(features(1), 5, axis=0)) == [("a", "b", "c", "d", "e")]


def test_equal_features_are_found_among_thousands():
    text = features(20000, 16)
    text[17], text[19000] = text[12345], text[12345]
    assert indistinguishable_classes(range(20000), text) == [(17, 12345, 19000)]


def test_problems_name_all_groups_and_unknown_words():
    text = features(6)
    text[1], text[3] = text[0], text[2]
    names = ("car", "Car", "person", "giraffe", "sky", "road")
    (problem,) = text_problems(names, text)
    assert "the same: 'car' and 'Car'; 'person' and 'giraffe'; rename" in problem
    unknown, same = text_problems(names, text, ("person", "giraffe", "sky"))
    assert "never learned the words of 'person', 'giraffe', 'sky'" in unknown
    assert "the same: 'car' and 'Car'; rename" in same
    assert "more such groups" not in same


def test_many_groups_are_shortened():
    text = features(5).repeat(2, axis=0)
    (problem,) = text_problems("abcdefghij", text)
    assert "'e' and 'f'; and 2 more such groups" in problem
