"""Purity, best-overlap IoU, boundary recall, clusters per region and token accuracy: by hand, and pixel by pixel."""

import numpy as np
import pytest

from experiments.region_scores import (
    NO_CLASS,
    RegionScores,
    TokenScores,
    class_counts,
    nearest_text,
    region_scores,
    token_classes,
    token_scores,
)

RESERVED, VOID = 9, 255


def scores(masks, label, classes=3, tolerance=1, measured=(0, 1, 2), labelled=()):
    """Scores on the classes `measured`; pixels of the classes `labelled` carry no pseudo label."""
    masks, label = np.array(masks), np.array(label, np.uint8)
    counts, patch = class_counts(label, masks.shape, classes), label.size // masks.size
    carried = patch - counts[..., list(labelled)].sum(axis=2)
    counts = np.where(np.isin(np.arange(classes), measured), counts, 0)
    return region_scores(masks, RESERVED, counts, carried, patch, tolerance)


def pixels_of(tokens, side=2):
    """A label map with `side` x `side` equal pixels per token."""
    return np.kron(np.array(tokens), np.ones((side, side), int))


def oracle(masks, label, measured, labelled, tolerance):
    """All measures, one pixel, one region and one token at a time."""
    side = label.shape[0] // masks.shape[0]
    of_pixel = np.kron(masks, np.ones((side, side), int))
    of_pixel[np.isin(label, labelled)] = RESERVED
    pure = total = clusters = 0
    pseudo_labels = set(of_pixel.ravel().tolist()) - {RESERVED}
    regions = [c for c in measured if (label == c).sum() >= side * side]
    for pseudo in pseudo_labels:
        amounts = [((of_pixel == pseudo) & (label == c)).sum() for c in measured]
        pure, total = pure + max(amounts), total + sum(amounts)
        is_majority = 2 * max(amounts) >= (of_pixel == pseudo).sum()
        clusters += is_majority and measured[int(np.argmax(amounts))] in regions
    ious = []
    for c in regions:
        overlaps = [
            ((of_pixel == p) & (label == c)).sum() / ((of_pixel == p) | (label == c)).sum() for p in pseudo_labels
        ]
        ious.append(max(overlaps, default=0))
    true, found = boundary_oracle(masks, label, measured, tolerance, side)
    return pure, total, ious, clusters, true, found


def boundary_oracle(masks, label, measured, tolerance, side):
    height, width = masks.shape
    truth = np.full(masks.shape, -1)
    for y in range(height):
        for x in range(width):
            patch = label[y * side : (y + 1) * side, x * side : (x + 1) * side]
            amounts = [(patch == c).sum() for c in measured]
            if masks[y, x] != RESERVED and 2 * max(amounts) >= side * side:
                truth[y, x] = measured[int(np.argmax(amounts))]

    def edge(values, none, y, x):
        near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        inside = [values[a, b] for a, b in near if 0 <= a < height and 0 <= b < width]
        return values[y, x] != none and any(other not in (none, values[y, x]) for other in inside)

    tokens = [(y, x) for y in range(height) for x in range(width)]
    true = [t for t in tokens if edge(truth, -1, *t)]
    drawn = [t for t in tokens if edge(masks, RESERVED, *t)]
    found = [t for t in true if any(max(abs(t[0] - d[0]), abs(t[1] - d[1])) <= tolerance for d in drawn)]
    return len(true), len(found)


def test_masks_equal_to_the_regions_score_one_in_everything():
    tokens = [[0, 0, 1, 1], [0, 0, 1, 1]]
    measures = scores(tokens, pixels_of(tokens)).measures
    assert measures == {"purity": 1, "best_iou": 1, "boundary_recall": 1, "clusters": 1, "regions": 2}


def test_one_mask_over_two_regions_by_hand():
    # 6 tokens of class 0 and 2 of class 1: the mask is mostly class 0
    label = pixels_of([[0, 0, 0, 1], [0, 0, 0, 1]])
    measures = scores(np.zeros((2, 4), int), label).measures
    assert measures["purity"] == 6 / 8
    assert measures["best_iou"] == pytest.approx((6 / 8 + 2 / 8) / 2)
    assert measures["clusters"] == 1 / 2
    assert measures["boundary_recall"] == 0


def test_two_masks_in_one_region_by_hand():
    measures = scores([[0, 0, 0, 5]], pixels_of([[2, 2, 2, 2]])).measures
    assert measures == {"purity": 1, "best_iou": 3 / 4, "boundary_recall": None, "clusters": 2, "regions": 1}


def test_pixels_of_tokens_without_pseudo_label_lower_the_iou_only():
    measures = scores([[0, RESERVED]], pixels_of([[1, 1]])).measures
    assert (measures["purity"], measures["best_iou"], measures["clusters"]) == (1, 1 / 2, 1)


def test_pixels_that_a_mask_takes_from_elsewhere_lower_iou_and_majority_but_not_purity():
    label = pixels_of([[0, VOID, 2, VOID]])
    half = scores([[0, 0, 1, 1]], label, measured=[0, 1]).measures
    assert half == {"purity": 1, "best_iou": 1 / 2, "boundary_recall": None, "clusters": 1, "regions": 1}
    third = scores([[0, 0, 0, 1]], label, measured=[0, 1]).measures
    assert (third["purity"], third["best_iou"], third["clusters"]) == (1, 1 / 3, 0)


def test_pixels_with_a_label_carry_no_pseudo_label():
    label = pixels_of([[0, 0, 1]])
    label[0, 0] = label[0, 2] = 2
    measures = scores([[0, 0, 0]], label, measured=[0, 1], labelled=[2]).measures
    assert measures["purity"] == 6 / 10
    assert measures["best_iou"] == pytest.approx((6 / 10 + 4 / 10) / 2)


def test_regions_smaller_than_a_token_are_not_counted():
    label = pixels_of([[0, 0]])
    label[0, 0] = 1
    measures = scores([[0, 0]], label).measures
    assert measures["regions"] == 1
    assert measures["purity"] == 7 / 8


@pytest.mark.parametrize(("tolerance", "recall"), [(0, 0), (1, 1 / 2), (2, 1)])
def test_tolerance_is_a_distance_in_tokens(tolerance, recall):
    # the true boundary is between tokens 1 and 2, the drawn one between tokens 3 and 4
    measures = scores([[0, 0, 0, 0, 1]], pixels_of([[0, 0, 1, 1, 1]]), tolerance=tolerance).measures
    assert measures["boundary_recall"] == recall


def test_nothing_to_measure_is_none_rather_than_zero():
    label = np.full((2, 4), VOID)
    empty = {"purity": None, "best_iou": None, "boundary_recall": None, "clusters": None, "regions": 0}
    assert scores([[0, 1]], label).measures == scores([[RESERVED, RESERVED]], label).measures == empty
    assert RegionScores().measures == empty
    assert TokenScores().accuracy is None


@pytest.mark.parametrize("seed", range(20))
def test_scores_agree_with_counting_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    masks = rng.choice([0, 1, 2, RESERVED], (4, 5))
    label = rng.choice([0, 1, 2, VOID], (8, 10)).astype(np.uint8)
    label[:, :6] = pixels_of(rng.choice([0, 1, 2, VOID], (4, 3)))
    measured, labelled = [([0, 1, 2], []), ([0, 2], []), ([0, 2], [1])][seed % 3]
    tolerance = seed % 4
    ours = scores(masks, label, tolerance=tolerance, measured=measured, labelled=labelled)
    pure, total, ious, clusters, true, found = oracle(masks, label, measured, labelled, tolerance)
    assert (ours.majority_pixels, ours.pixels, ours.regions, ours.clusters) == (pure, total, len(ious), clusters)
    assert (ours.boundary_tokens, ours.found_tokens) == (true, found)
    assert ours.iou == pytest.approx(sum(ious))


def test_scores_of_images_are_pooled():
    one, other = scores([[0, 0]], pixels_of([[0, 1]])), scores([[0, 1]], pixels_of([[0, 1]]))
    assert (one + other).measures["purity"] == (4 + 8) / 16
    assert (one + other).measures["best_iou"] == (1 / 2 + 1 / 2 + 1 + 1) / 4


def test_a_token_has_the_class_that_covers_half_of_its_patch():
    label = np.array([[0, 0, 1, 2, 1, VOID], [1, 1, 2, 0, 1, VOID]], np.uint8)
    counts = class_counts(label, (1, 3), 3)
    assert counts.tolist() == [[[2, 2, 0], [1, 1, 2], [0, 2, 0]]]
    assert token_classes(counts, 4).tolist() == [[0, 2, 1]]
    assert token_classes(class_counts(np.array([[0, 1, 2, VOID]], np.uint8), (1, 1), 3), 4).tolist() == [[NO_CLASS]]


def test_accuracy_is_over_tokens_of_the_given_classes_and_argmax_over_all_names():
    text = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 9]], np.float32)
    dense = np.array([[[5, 1, 0], [1, 1.1, 0], [2, 3, 0], [0, 9, 10]]], np.float16)
    predicted = nearest_text(dense, text)
    assert predicted.tolist() == [[0, 1, 1, 2]]
    true = np.array([[0, 0, 1, NO_CLASS]])
    assert token_scores(predicted, true, np.array([0, 1])) == TokenScores(tokens=3, correct=2)
    assert token_scores(predicted, true, np.array([2])).accuracy is None
