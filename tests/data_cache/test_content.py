"""Class names that CLIP cannot tell apart."""

import numpy as np

from data_cache.content import indistinguishable_classes, indistinguishable_warnings


def features(rows, channels=64):
    return np.random.default_rng(0).normal(size=(rows, channels)).astype(np.float32)


def test_parallel_features_are_grouped_up_to_rounding():
    text = features(6)
    text[4], text[5] = 3 * text[1], text[1] * (1 + 1e-6)
    text[3] = text[0]
    assert indistinguishable_classes("abcdef", text) == [("a", "d"), ("b", "e", "f")]


def test_similar_features_are_not_grouped():
    text = features(3)
    text[1] = text[0] + 0.01 * text[2]
    assert indistinguishable_classes("abc", text) == []
    assert indistinguishable_warnings("abc", text) == []


def test_single_names_form_no_group_and_all_names_may_form_one():
    assert indistinguishable_classes("a", features(1)) == []
    assert indistinguishable_classes("abcde", np.repeat(features(1), 5, axis=0)) == [("a", "b", "c", "d", "e")]


def test_equal_features_are_found_among_thousands():
    text = features(20000, 16)
    text[17], text[19000] = text[12345], text[12345]
    assert indistinguishable_classes(range(20000), text) == [(17, 12345, 19000)]


def test_warning_names_the_first_group_and_counts_the_others():
    text = features(6)
    text[1], text[3] = text[0], text[2]
    (warning,) = indistinguishable_warnings(("car", "Car", "person", "giraffe", "sky", "road"), text)
    assert "cannot tell 'car' and 'Car' apart" in warning
    assert "1 more such groups" in warning
