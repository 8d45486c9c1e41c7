"""Metrics against torchmetrics' confusion matrix and the published definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassConfusionMatrix

from trainer.metrics import ConfusionMatrix, mean_and_std, metrics

CLASSES, UNSEEN = 5, np.array([1, 4])


def draw_maps(seed: int, present: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, present, (3, 11, 7)).astype(np.uint8)
    label[rng.random(label.shape) < 0.3] = 255
    return label, rng.integers(0, CLASSES, label.shape)


def count(label: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    matrix = ConfusionMatrix(CLASSES)
    for pair in zip(label, predicted, strict=True):
        matrix.update(*pair)
    return matrix.counts


def pixel_by_pixel(label: np.ndarray, predicted: np.ndarray) -> dict:
    """Intersections and unions of pixel sets, without a confusion matrix."""
    valid = label != 255
    iou = []
    for c in range(CLASSES):
        true_mask, predicted_mask = valid & (label == c), valid & (predicted == c)
        union = (true_mask | predicted_mask).sum()
        iou.append((true_mask & predicted_mask).sum() / union if union else np.nan)
    seen = [v for c, v in enumerate(iou) if c not in UNSEEN and not np.isnan(v)]
    unseen = [v for c, v in enumerate(iou) if c in UNSEEN and not np.isnan(v)]
    s, u = (np.mean(v) if v else np.nan for v in (seen, unseen))
    hiou = 0.0 if s == u == 0 else 2 * s * u / (s + u)
    accuracy = (label == predicted)[valid].mean() if valid.any() else np.nan
    return {"pixel_accuracy": accuracy, "miou_seen": s, "miou_unseen": u, "hiou": hiou, "iou": iou}


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_counts_match_torchmetrics(seed):
    label, predicted = draw_maps(seed)
    reference = MulticlassConfusionMatrix(CLASSES, ignore_index=255)
    expected = reference(torch.tensor(predicted), torch.tensor(label.astype(np.int64)))
    np.testing.assert_array_equal(count(label, predicted), expected.numpy())


@given(seed=st.integers(0, 2**32 - 1), present=st.integers(1, CLASSES), accuracy=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_metrics_match_their_definitions_over_pooled_pixels(seed, present, accuracy):
    label, predicted = draw_maps(seed, present)
    # classes from `present` on are neither labelled nor predicted
    predicted %= present
    correct = (np.random.default_rng(seed).random(label.shape) < accuracy) & (label != 255)
    predicted[correct] = label[correct]
    result, expected = metrics(count(label, predicted), UNSEEN), pixel_by_pixel(label, predicted)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=1e-12, err_msg=name)


def test_images_are_pooled_before_dividing():
    label = np.array([[0, 0, 0, 0], [1, 1, 1, 0]], np.uint8)
    predicted = np.array([[0, 0, 0, 0], [1, 0, 0, 1]])
    assert metrics(count(label, predicted), UNSEEN).iou[:2].tolist() == [4 / 7, 1 / 4]


def test_void_pixels_are_not_counted_even_as_predictions():
    label, predicted = np.array([[0, 1, 255, 255]], np.uint8), np.array([[0, 1, 2, 1]])
    counts = count(label, predicted)
    assert counts.sum() == 2
    result = metrics(counts, UNSEEN)
    assert result.iou[1] == 1.0
    assert np.isnan(result.iou[2])


def test_absent_classes_are_nan_and_excluded_from_means():
    label = np.array([[0, 0, 1, 1]], np.uint8)
    result = metrics(count(label, np.array([[0, 0, 1, 0]])), UNSEEN)
    assert np.isnan(result.iou).tolist() == [False, False, True, True, True]
    assert result.miou_seen == pytest.approx(2 / 3)
    assert result.miou_unseen == pytest.approx(1 / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    result = metrics(count(np.array([[0, 0]], np.uint8), np.array([[0, 2]])), UNSEEN)
    assert result.iou[2] == 0
    assert result.miou_seen == pytest.approx(1 / 4)


def test_hiou_is_0_when_everything_is_wrong():
    result = metrics(count(np.array([[0, 1]], np.uint8), np.array([[1, 0]])), UNSEEN)
    assert (result.miou_seen, result.miou_unseen, result.hiou) == (0, 0, 0)


def test_without_unseen_pixels_unseen_miou_and_hiou_are_nan():
    result = metrics(count(np.array([[0, 2]], np.uint8), np.array([[0, 2]])), UNSEEN)
    assert (result.pixel_accuracy, result.miou_seen) == (1, 1)
    assert np.isnan(result.miou_unseen)
    assert np.isnan(result.hiou)


def test_metrics_of_no_pixels_are_nan():
    result = metrics(ConfusionMatrix(CLASSES).counts, UNSEEN)
    assert np.isnan([result.pixel_accuracy, result.miou_seen, result.miou_unseen, result.hiou, *result.iou]).all()


def test_miou_is_over_classes_with_a_label_and_not_over_those_only_predicted():
    result = metrics(count(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 2, 1, 1]])), UNSEEN)
    assert result.miou == (0.5 + 1) / 2
    assert result.miou_seen == (0.5 + 0) / 2


def test_mean_and_std_are_in_percent_with_n_minus_1():
    assert mean_and_std([0.6, 0.62, 0.64]) == "62.0 ± 2.0"
    assert mean_and_std(np.array([0.05, 0.07]), "+") == "+6.0 ± 1.4"
    assert mean_and_std([-0.05, -0.07], "+") == "-6.0 ± 1.4"


def test_a_single_run_has_no_standard_deviation():
    assert mean_and_std([0.612]) == "61.2"
