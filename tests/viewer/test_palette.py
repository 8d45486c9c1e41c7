"""Colors are stable and distinguishable in every kind of color vision; unlabelled area is hatched."""

import numpy as np
import pytest

from viewer.palette import (
    BLANK,
    HATCH,
    color_of,
    draw_box,
    hatched_panel,
    label_to_rgb,
    overlay,
    overlay_heat,
    overlay_masks,
    paint_labels,
    paint_masks,
)

VISIONS = {  # linear RGB; Machado, Oliveira and Fernandes 2009, severity 1
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def cie_lab(rgb: np.ndarray, vision: str) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB colors as seen with one kind of color vision."""
    unit = rgb / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x, y, z = (seen @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]).T
    f = [np.where(v > 216 / 24389, np.cbrt(v), (24389 / 27 * v + 16) / 116) for v in (x, y, z)]
    return np.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])], axis=1)


@pytest.mark.parametrize("vision", VISIONS)
def test_first_17_colors_are_distinct_in_all_color_vision(vision):
    lab = cie_lab(np.stack([*(color_of(label) for label in range(17)), BLANK]).astype(float), vision)
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=2)[np.triu_indices(18, 1)]
    assert distances.min() > 9  # four times the just noticeable difference (2.3)


def test_200_labels_have_distinct_colors():
    colors = {tuple(color_of(label)) for label in range(200)} | {tuple(BLANK)}
    assert len(colors) == 201


def test_label_color_does_not_depend_on_other_labels():
    first, second = label_to_rgb(np.array([[3, 255]]), 255), label_to_rgb(np.array([[0, 1], [3, 90]]), 255)
    np.testing.assert_array_equal(first[0, 0], second[1, 0])
    np.testing.assert_array_equal(first[0, 1], BLANK)


def test_only_unlabelled_area_is_hatched():
    painted = paint_labels(np.array([[1, 255]]), 255, (32, 64))
    assert painted.shape == (32, 64, 3)
    assert {tuple(c) for c in painted[:, :32].reshape(-1, 3)} == {tuple(color_of(1))}
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


@pytest.mark.parametrize("classes", [17, 59, 64, 171])
def test_pseudo_label_colors_follow_the_class_colors(classes):
    label = np.array([[0, 1, 65535]], np.uint16)
    painted = paint_masks(label, 65535, classes, (4, 12))
    assert [tuple(painted[0, x]) for x in (0, 4)] == [tuple(color_of((classes + i) % 64)) for i in (0, 1)]
    assert {tuple(c) for c in painted[:, 8:].reshape(-1, 3)} == {tuple(BLANK), tuple(HATCH)}


def test_largest_stored_label_is_painted():
    painted = paint_masks(np.array([[254, 255]], np.uint8), 255, 17, (2, 4))
    np.testing.assert_array_equal(painted[0, 0], color_of(17 + 254))


def test_mask_overlay_leaves_unlabelled_area_gray():
    image = np.full((8, 16, 3), (200, 40, 90), np.uint8)
    drawn = overlay_masks(image, np.array([[3, 255]], np.uint8), 255, 17).astype(int)
    assert np.ptp(drawn[:, 8:], axis=2).max() == 0
    assert np.ptp(drawn[:, :8], axis=2).min() > 20
    assert drawn[:, 8:].max() < 200


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
