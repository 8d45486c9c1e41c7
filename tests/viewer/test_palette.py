"""Label maps, pseudo labels, overlays and boxes are painted; unlabelled area is hatched."""

import numpy as np
import pytest

from data_cache.class_list import class_lists
from viewer.class_colors import class_colors
from viewer.color_vision import distance, oklab
from viewer.palette import (
    BLANK,
    HATCH,
    draw_box,
    hatched_panel,
    label_to_rgb,
    mask_colors,
    overlay,
    overlay_heat,
    paint_labels,
    paint_masks,
)

COLORS = np.array([[0, 0, 255], [0, 160, 0], [220, 30, 30], [250, 200, 0]], np.uint8)


def test_each_label_has_the_color_of_its_class():
    painted = label_to_rgb(np.array([[3, 255], [0, 1]], np.uint8), 255, COLORS)
    np.testing.assert_array_equal(painted, [[COLORS[3], BLANK], [COLORS[0], COLORS[1]]])


def test_only_unlabelled_area_is_hatched():
    painted = paint_labels(np.array([[1, 255]]), 255, COLORS, (32, 64))
    assert painted.shape == (32, 64, 3)
    assert {tuple(c) for c in painted[:, :32].reshape(-1, 3)} == {tuple(COLORS[1])}
    assert {tuple(c) for c in painted[:, 32:].reshape(-1, 3)} == {tuple(BLANK), tuple(HATCH)}


def test_overlay_shows_the_image_in_gray():
    image = np.array([[[255, 0, 0], [30, 60, 90]]], np.uint8)
    drawn = overlay(image, np.zeros_like(image))
    assert (drawn == drawn[..., :1]).all()
    assert drawn[0, 0, 0] > drawn[0, 1, 0] > 0


def test_heat_peaks_at_the_largest_weight():
    weights = np.zeros((4, 4))
    weights[2, 1] = 1
    drawn = overlay_heat(np.full((32, 32, 3), 120, np.uint8), weights).astype(int)
    y, x = np.unravel_index((drawn[..., 0] - drawn[..., 2]).argmax(), (32, 32))
    assert (y // 8, x // 8) == (2, 1)


@pytest.mark.parametrize("name", ["voc", "scenes", "coco"])
def test_pseudo_labels_have_colors_of_their_own(name):
    classes = class_colors(class_lists()[name].classes)
    label = np.array([[0, 1, 65535]], np.uint16)
    painted = paint_masks(label, 65535, classes, (4, 12))
    assert [tuple(painted[0, x]) for x in (0, 4)] == [tuple(color) for color in mask_colors(classes)[:2]]
    assert {tuple(c) for c in painted[:, 8:].reshape(-1, 3)} == {tuple(BLANK), tuple(HATCH)}
    assert len({*map(tuple, mask_colors(classes))}) == 64


@pytest.mark.parametrize("name", ["voc", "scenes", "camvid"])
def test_the_first_pseudo_labels_resemble_no_class_of_a_short_list(name):
    classes = class_colors(class_lists()[name].classes)
    assert distance(oklab(mask_colors(classes)[:8])[:, None], oklab(classes)).min() >= 0.05


def test_largest_stored_label_is_painted():
    painted = paint_masks(np.array([[254, 255]], np.uint8), 255, COLORS, (2, 4))
    np.testing.assert_array_equal(painted[0, 0], mask_colors(COLORS)[254 % 64])


@pytest.mark.parametrize("box", [(2, 3, 10, 12), (5, 5, 5, 5), (0, 0, 16, 16), (15, 15, 16, 16)])
def test_box_outline_changes_nothing_outside_the_box(box):
    plain = np.full((16, 16, 3), 90, np.uint8)
    drawn = draw_box(plain, box)
    y, x = np.nonzero((drawn != plain).any(axis=2))
    assert len(y)
    top, left, bottom, right = box
    assert (y.min(), x.min()) == (top, left)
    assert y.max() < max(bottom, top + 5)
    assert x.max() < max(right, left + 5)


def test_missing_image_panel_is_hatched():
    assert {tuple(c) for c in hatched_panel(24).reshape(-1, 3)} == {tuple(BLANK), tuple(HATCH)}
