"""Class names that CLIP cannot tell apart."""

import numpy as np

from data_cache.content import COSINE_TOLERANCE, indistinguishable_classes, text_problems


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


def test_names_that_differ_only_outside_of_the_principal_components_are_not_grouped():
    text = np.random.default_rng(1).normal(size=(2000, 100)).astype(np.float32)
    text[:, 50:] = 0
    text[1500] = text[3]
    text[1500, 60] = 1
    text[1700] = text[1500]
    assert indistinguishable_classes(range(2000), text) == [(1500, 1700)]


def test_groups_of_many_names_equal_those_of_a_plain_comparison():
    rng = np.random.default_rng(2)
    centers = rng.normal(size=(300, 200))
    text = (centers[rng.integers(0, 300, 1500)] + 0.03 * rng.normal(size=(1500, 200))).astype(np.float32)
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    first = (unit @ unit.T > 1 - COSINE_TOLERANCE).argmax(axis=1).tolist()
    leader: list[int] = []
    for row, equal in enumerate(first):
        leader.append(leader[equal] if equal < row else row)
    groups = [tuple(row for row in range(1500) if leader[row] == own) for own in dict.fromkeys(leader)]
    expected = [group for group in groups if len(group) > 1]
    assert expected
    assert indistinguishable_classes(range(1500), text) == expected
