"""Metrics against torchmetrics' confusion matrix and the published definitions, class by class."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix

from trainer.metrics import ConfusionMatrix, metrics

CLASSES, UNSEEN = 5, np.array([1, 4])


def draw_maps(seed: int, present: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, present, (3, 11, 7)).astype(np.uint8)
    label[rng.random(label.shape) < 0.3] = 255
    return label, rng.integers(0, CLASSES, label.shape)


def counted(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    matrix = ConfusionMatrix(CLASSES)
    for pair in zip(label, predicted, strict=True):
        matrix.update(*pair)
    return matrix.counts


def pixel_by_pixel(label: np.ndarray, predicted: np.ndarray) -> dict:
    """Intersections and unions from sets of pixels: no confusion matrix."""
    known = label != 255
    iou = []
    for c in range(CLASSES):
        truth, guess = known & (label == c), known & (predicted == c)
        union = (truth | guess).sum()
        iou.append((truth & guess).sum() / union if union else np.nan)
    seen = [v for c, v in enumerate(iou) if c not in UNSEEN and not np.isnan(v)]
    unseen = [v for c, v in enumerate(iou) if c in UNSEEN and not np.isnan(v)]
    s, u = (np.mean(v) if v else np.nan for v in (seen, unseen))
    hiou = 0.0 if s == u == 0 else 2 * s * u / (s + u)
    accuracy = (label == predicted)[known].mean() if known.any() else np.nan
    return {"pixel_accuracy": accuracy, "miou_seen": s, "miou_unseen": u, "hiou": hiou, "iou": iou}


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_counts_are_those_of_torchmetrics(seed):
    label, predicted = draw_maps(seed)
    peer = MulticlassConfusionMatrix(CLASSES, ignore_index=255)
    expected = peer(torch.tensor(predicted), torch.tensor(label.astype(np.int64)))
    np.testing.assert_array_equal(counted(label, predicted), expected.numpy())


@given(seed=st.integers(0, 2**32 - 1), present=st.integers(1, CLASSES), right=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_metrics_are_their_definitions_over_the_pooled_pixels(seed, present, right):
    label, predicted = draw_maps(seed, present)
    # a share of right pixels, and no prediction of classes beyond `present`: some are absent altogether
    predicted %= present
    agree = (np.random.default_rng(seed).random(label.shape) < right) & (label != 255)
    predicted[agree] = label[agree]
    found, expected = metrics(counted(label, predicted), UNSEEN), pixel_by_pixel(label, predicted)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-12, err_msg=name)


def test_images_are_pooled_before_dividing():
    label = np.array([[0, 0, 0, 0], [1, 1, 1, 0]], np.uint8)
    predicted = np.array([[0, 0, 0, 0], [1, 0, 0, 1]])
    assert metrics(counted(label, predicted), UNSEEN).iou[:2].tolist() == [4 / 7, 1 / 4]


def test_void_pixels_count_nowhere_not_even_as_predictions():
    label, predicted = np.array([[0, 1, 255, 255]], np.uint8), np.array([[0, 1, 2, 1]])
    counts = counted(label, predicted)
    assert counts.sum() == 2
    found = metrics(counts, UNSEEN)
    assert found.iou[1] == 1.0
    assert np.isnan(found.iou[2])


def test_absent_classes_are_nan_and_skipped_by_the_means():
    label = np.array([[0, 0, 1, 1]], np.uint8)
    found = metrics(counted(label, np.array([[0, 0, 1, 0]])), UNSEEN)
    assert np.isnan(found.iou).tolist() == [False, False, True, True, True]
    assert found.miou_seen == pytest.approx(2 / 3)
    assert found.miou_unseen == pytest.approx(1 / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    found = metrics(counted(np.array([[0, 0]], np.uint8), np.array([[0, 2]])), UNSEEN)
    assert found.iou[2] == 0
    assert found.miou_seen == pytest.approx(1 / 4)


def test_hiou_is_0_when_everything_is_wrong():
    found = metrics(counted(np.array([[0, 1]], np.uint8), np.array([[1, 0]])), UNSEEN)
    assert (found.miou_seen, found.miou_unseen, found.hiou) == (0, 0, 0)


def test_without_unseen_classes_in_sight_their_mean_and_hiou_are_nan():
    found = metrics(counted(np.array([[0, 2]], np.uint8), np.array([[0, 2]])), UNSEEN)
    assert (found.pixel_accuracy, found.miou_seen) == (1, 1)
    assert np.isnan(found.miou_unseen)
    assert np.isnan(found.hiou)


def test_nothing_counted_is_nan_and_no_error():
    found = metrics(ConfusionMatrix(CLASSES).counts, UNSEEN)
    assert np.isnan([found.pixel_accuracy, found.miou_seen, found.miou_unseen, found.hiou, *found.iou]).all()
