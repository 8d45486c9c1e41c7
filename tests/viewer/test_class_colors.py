"""A class has the color of its name, in every list and every order, and its neighbors look different to everyone."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_cache.class_list import class_lists
from viewer.class_colors import class_colors, known_key, published
from viewer.color_vision import VISIONS, distance, oklab
from viewer.palette import BLANK, HATCH

LISTS = {name: published.classes for name, published in class_lists().items()}
# OKLab, in the worst of normal vision, protanopia, deuteranopia and tritanopia; 0.02 is just noticeable
LEAST = {"voc": 0.065, "scenes": 0.06, "camvid": 0.065, "context": 0.034, "coco": 0.019, "crowd": 0.019}
OWN = st.lists(st.text("abcde -", min_size=1, max_size=6), max_size=12, unique=True)


def by_name(names):
    return {name: tuple(color) for name, color in zip(names, class_colors(names).tolist(), strict=True)}


def least_distance(colors):
    seen = oklab(np.asarray(colors))
    return distance(seen[:, None], seen)[np.triu_indices(len(seen), 1)].min()


# -- names ---------------------------------------------------------------------------------------------------------


def test_a_published_name_has_one_color_in_every_list():
    everywhere = {}
    for names in LISTS.values():
        for name, color in by_name(names).items():
            assert everywhere.setdefault(name, color) == color
            assert by_name([name])[name] == color


@settings(deadline=None, max_examples=60)
@given(OWN, st.sets(st.sampled_from(LISTS["coco"]), max_size=8), st.randoms())
def test_color_does_not_depend_on_the_order(own, known, shuffler):
    names = list(dict.fromkeys([*own, *known]))
    shuffled = shuffler.sample(names, len(names))
    assert by_name(names) == by_name(shuffled)


@settings(deadline=None, max_examples=60)
@given(OWN, st.sampled_from(LISTS["coco"]))
def test_no_name_changes_the_color_of_a_published_name(own, name):
    names = [*(other for other in own if known_key(other, published()) is None), name]
    assert by_name(names)[name] == by_name([name])[name]


def test_one_more_name_changes_few_other_colors():
    changed = 0
    for run in range(20):
        names = [f"gadget {run} {number}" for number in range(12)]
        before, after = by_name(names), by_name([*names, "widget"])
        changed += sum(before[name] != after[name] for name in names)
    assert changed < 80  # of 240


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Sky", "sky"),
        ("sky-other", "sky"),
        ("sofa", "couch"),
        ("tvmonitor", "TV"),
        ("traffic_light", "traffic light"),
        ("diningtable", "dining table"),
        ("vegetation", "tree"),
        ("pedestrian", "person"),
    ],
)
def test_spellings_and_synonyms_share_a_color(one, other):
    assert by_name([one])[one] == by_name([other])[other]


def test_synonyms_in_one_list_differ():
    names = ["sofa", "couch", "Couch"]
    assert len(set(by_name(names).values())) == 3
    assert by_name(names)["sofa"] == by_name(["sofa"])["sofa"]


def test_common_names_have_natural_colors():
    def rgb(name):
        return [int(value) for value in class_colors([name])[0]]

    for name in ("grass", "tree", "broccoli"):
        assert rgb(name)[1] == max(rgb(name))
    for name in ("sky", "sea", "car"):
        assert rgb(name)[2] == max(rgb(name))
    assert rgb("person")[0] > 2 * max(rgb("person")[1:])
    assert np.ptp(rgb("road")) < 40
    assert min(rgb("snow")) > 215
    assert sum(rgb("tree")) < sum(rgb("grass"))


# -- distances -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTS)
def test_classes_of_a_list_look_different_in_every_color_vision(name):
    assert least_distance(class_colors(LISTS[name])) >= LEAST[name]


def test_any_two_published_names_look_different():
    assert least_distance(list(published().values())) >= 0.019


def test_no_class_looks_like_unlabelled_area():
    for blank in (BLANK, HATCH):
        for names in (*LISTS.values(), [f"own {number}" for number in range(40)]):
            assert distance(oklab(class_colors(names)), oklab(blank[None])).min() >= 0.05


@pytest.mark.parametrize(("count", "least"), [(20, 0.06), (30, 0.03), (60, 0.025), (300, 0.002)])
def test_own_names_look_different(count, least):
    for seed in range(5):
        names = [f"part {number}" for number in random.Random(seed).sample(range(10**6), count)]
        assert least_distance(class_colors(names)) >= least


def test_own_names_look_different_from_published_ones():
    names = [*LISTS["voc"], *(f"tool {number}" for number in range(10))]
    assert least_distance(class_colors(names)) >= 0.03


def test_more_names_than_colors_still_have_colors():
    colors = class_colors([f"word {number}" for number in range(1000)])
    assert colors.shape == (1000, 3)
    assert len({tuple(color) for color in colors}) > 370


def test_oklab_of_primary_colors():
    # published with the definition: https://bottosson.github.io/posts/oklab
    expected = [[0.6280, 0.2249, 0.1258], [0.8664, -0.2339, 0.1795], [0.4520, -0.0325, -0.3115]]
    np.testing.assert_allclose(oklab(255 * np.eye(3))[:, 0], expected, atol=2e-4)


def test_gray_is_gray_in_every_color_vision():
    np.testing.assert_allclose(VISIONS.sum(axis=2), 1, atol=1e-5)
    seen = oklab(np.array([[90, 90, 90], [200, 200, 200]]))
    np.testing.assert_allclose(seen[..., 1:], 0, atol=1e-3)


def test_protanopes_confuse_red_with_dark_brown():
    red, brown, blue = oklab(np.array([[200, 0, 0], [75, 60, 0], [0, 0, 200]]))
    assert np.linalg.norm(red[1] - brown[1]) < 0.5 * np.linalg.norm(red[0] - brown[0])
    assert np.linalg.norm(red[1] - blue[1]) > 0.3
