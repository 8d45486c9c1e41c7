"""Warnings about images and label maps that are most likely mistakes."""

import numpy as np

from data_cache.survey import Survey

CLASSES = ("background", "road", "tree")
NOISE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


def label(*values):
    return np.resize(np.array(values, np.uint8), (6, 8))


def survey(*labels, image=NOISE):
    counts = [None if label is None else np.bincount(label.ravel(), minlength=256) for label in labels]
    return sum((Survey.of(f"{i}.jpg", image, count) for i, count in enumerate(counts)), Survey())


def test_complete_label_maps_give_no_warning():
    assert survey(label(0, 1, 255), label(2), None).warnings(CLASSES) == []


def test_classes_absent_from_all_label_maps_are_reported():
    (warning,) = survey(label(0, 1), label(1)).warnings(CLASSES)
    assert warning == "1 of 3 classes have no pixel in the 2 label maps read: tree"


def test_masks_of_0_and_255_are_reported_with_a_fix():
    (warning,) = survey(label(0, 255), label(0)).warnings(CLASSES[:2])
    assert "1 of 2 classes have no pixel in the 2 label maps read: road" in warning
    assert "255, such as the white of a 1-bit mask, is void: number the classes 0, 1, .." in warning


def test_label_maps_of_only_void_are_named():
    found = survey(label(0, 1, 2), label(255), label(255))
    assert found.void == ("1.jpg", "2.jpg")
    assert found.warnings(CLASSES) == ["2 of 3 label maps have only void (255): 1.jpg, 2.jpg"]


def test_unlabelled_images_give_no_class_warning():
    assert survey(None, None).warnings(CLASSES) == []


def test_images_of_a_single_color_are_named():
    plain = np.full((70, 90, 3), 7, np.uint8)
    assert survey(None, image=plain).warnings(CLASSES) == ["1 of 1 images have a single color: 0.jpg"]
    plain[69, 89, 2] = 8
    assert survey(None, image=plain).warnings(CLASSES) == []


def test_surveys_add_up():
    total = survey(label(0), None, label(255))
    assert (total.images, total.labelled) == (3, 2)
    assert (total.pixels[0], total.pixels[255]) == (48, 48)
