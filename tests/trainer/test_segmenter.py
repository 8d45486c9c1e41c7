"""Classes of another dataset: which get gamma, which count as S and U; and gamma picked without unseen labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from refusals import refused
from test_evaluate import CHANNELS, CLASSES, SIDE, SPLIT, Drawn, Paletted, striped

from data_cache.splits import Split
from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.evaluate import GRID, evaluate, pick_gamma
from trainer.metrics import metrics
from trainer.predictor import ClassLogits, Predictor
from trainer.segmenter import CLASS_CHUNK, TopSeenUnseen, Vocabulary, labels_and_scores, top_seen_unseen
from trainer.students.network import StudentNetwork

PERFECT = Checkpoint(TrainConfig(logits="dot"), Paletted(), SPLIT, torch.eye(len(CLASSES), CHANNELS), SIDE, 1, {})


def test_gamma_follows_training_labels_and_metrics_follow_the_target_split():
    target = Split(("beach", "cow", "sky", "road", "house"), ("cow", "sky"))
    labelled = np.array([False, False, True, True, True])
    vocabulary = Vocabulary(target, PERFECT.text, labelled)
    dataset = Drawn([striped(0, 1, 2, 3, 4, 2, 3, 4)])
    dataset.classes = target.classes
    evaluation = evaluate(Predictor(PERFECT, vocabulary=vocabulary), dataset, [1e4, -1e4])
    counts = evaluation.counts[1e4]
    assert set(np.flatnonzero(counts.sum(axis=0))) <= {0, 1}
    assert set(np.flatnonzero(evaluation.counts[-1e4].sum(axis=0))) <= {2, 3, 4}
    by_target, by_training = metrics(counts, np.array([1, 2])), metrics(counts, np.array([0, 1]))
    assert evaluation.at(1e4).summary == by_target.summary
    assert evaluation.by_training_labels(1e4).summary == by_training.summary
    assert evaluation.as_json()["by_training_vocabulary"]["mIoU_U"] == by_training.miou_unseen != by_target.miou_unseen


def test_training_vocabulary_metrics_are_omitted_on_the_training_dataset():
    assert "by_training_vocabulary" not in evaluate(Predictor(PERFECT), Drawn([striped(0, 3)])).as_json()


@pytest.mark.parametrize("labelled", [True, False])
def test_gamma_has_no_effect_when_all_classes_are_of_one_kind(labelled):
    logits = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    prediction = top_seen_unseen(logits, np.full(4, labelled), (3, 3))
    for gamma in (-5.0, 0.0, 5.0):
        np.testing.assert_array_equal(prediction.at(gamma), logits.argmax(dim=0).numpy())


class FixedMargins:
    """Predicts class 0 (labelled) or 2 (unlabelled) with the given margins, one array per image."""

    vocabulary = Vocabulary(
        Split(("seen", "other", "hidden"), ("hidden",)), torch.eye(3), np.array([True, True, False])
    )

    def __init__(self, margins):
        self.margins = iter(margins)

    def __call__(self, image):
        margin = next(self.margins)
        return TopSeenUnseen(np.zeros(margin.shape, int), np.full(margin.shape, 2), margin)


def seen_miou(margins, labels, gamma):
    """mIoU of the seen classes over pixels that have a seen label, counted pixel by pixel."""
    margin, label = (np.concatenate([array.ravel() for array in arrays]) for arrays in (margins, labels))
    predicted, valid = np.where(margin + gamma > 0, 2, 0), label < 2
    ious = []
    for index in (0, 1):
        if (label == index).any():
            intersection = (valid & (label == index) & (predicted == index)).sum()
            ious.append(intersection / (valid & ((label == index) | (predicted == index))).sum())
    return np.mean(ious)


def test_picked_gamma_is_the_greatest_that_keeps_98_percent_of_seen_miou():
    rng = np.random.default_rng(0)
    labels = [rng.choice(np.array([0, 0, 0, 0, 0, 1, 2, 255], np.uint8), (32, 32)) for _ in range(3)]
    margins = [
        np.where(label < 2, rng.normal(-3, 0.7, label.shape), rng.normal(-1, 1, label.shape)) for label in labels
    ]
    scores = np.array([seen_miou(margins, labels, gamma) for gamma in GRID])
    expected = GRID[np.flatnonzero(scores >= 0.98 * scores.max())[-1]]
    assert 0 < expected < 5
    assert pick_gamma(FixedMargins(margins), Drawn(labels)) == expected


def test_picked_gamma_does_not_depend_on_pixels_of_unseen_classes():
    rng = np.random.default_rng(1)
    labels = [rng.choice(np.array([0, 1, 2, 255], np.uint8), (32, 32))]
    margins = [rng.normal(-2, 1, (32, 32))]
    picked = pick_gamma(FixedMargins(margins), Drawn(labels))
    void = [np.where(label == 2, 255, label).astype(np.uint8) for label in labels]
    assert pick_gamma(FixedMargins(margins), Drawn(void)) == picked
    changed = [np.where(label < 2, margin, 9.0) for label, margin in zip(labels, margins, strict=True)]
    assert pick_gamma(FixedMargins(changed), Drawn(labels)) == picked


@pytest.mark.parametrize("label", [[[2, 255]], [[1, 1]]])
def test_pick_gamma_refuses_images_without_a_correct_seen_pixel(label):
    labels = np.array(label, np.uint8)
    refused(lambda: pick_gamma(FixedMargins([np.array([[-1.0, -1.0]])]), Drawn([labels])), "--pick-gamma")


def test_pick_gamma_skips_images_without_a_label_map():
    label, margin = np.array([[0, 255]], np.uint8), np.array([[-2.1, 1.0]])
    for labels in ([None, label], [label]):
        assert pick_gamma(FixedMargins([margin]), Drawn(labels)) == 2.0


def test_text_features_need_not_be_normalized():
    vocabulary = replace(PERFECT.vocabulary, text=3 * PERFECT.text)
    image = Drawn([striped(0, 1, 2, 3)]).load(0)[0]
    plain, scaled = (Predictor(PERFECT, vocabulary=names).logits(image)[:] for names in (None, vocabulary))
    torch.testing.assert_close(plain, scaled)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
@pytest.mark.parametrize("classes", [3, 40])
def test_scores_are_the_softmax_of_the_chosen_class(gamma, classes):
    logits = 4 * torch.randn(classes, 4, 5, generator=torch.Generator().manual_seed(0))
    labelled = np.arange(classes) % 3 > 0
    chosen, found = labels_and_scores(logits, labelled, gamma, (4, 5))
    added = logits.double().numpy() + gamma * ~labelled[:, None, None]
    np.testing.assert_array_equal(chosen, added.argmax(axis=0))
    np.testing.assert_array_equal(chosen, top_seen_unseen(logits, labelled, (4, 5)).at(gamma))
    shares = np.exp(added - added.max(axis=0))
    shares /= shares.sum(axis=0)
    np.testing.assert_allclose(found, np.take_along_axis(shares, chosen[None], 0)[0], rtol=1e-4)
    assert found.min() < 0.6 < found.max()


@pytest.mark.parametrize("labelled", [True, False])
def test_scores_of_classes_of_one_kind_are_their_softmax(labelled):
    logits = torch.randn(20, 3, 3, generator=torch.Generator().manual_seed(0))
    _, scores = labels_and_scores(logits, np.full(20, labelled), 1e3, (3, 3))
    np.testing.assert_allclose(scores, logits.softmax(dim=0).amax(dim=0).numpy(), rtol=1e-5)


def student_with_names(count):
    """A student with random weights, and a vocabulary of `count` names of which every fifth had labels."""
    torch.manual_seed(0)
    network = StudentNetwork("fpn", "resnet18", "none", CHANNELS).eval()
    split = Split(tuple(map(str, range(count))), ())
    vocabulary = Vocabulary(split, torch.randn(count, CHANNELS), np.arange(count) % 5 == 0)
    return Checkpoint(TrainConfig(), network, split, vocabulary.text, SIDE, 1, {}), vocabulary


@pytest.mark.parametrize("sliding", [False, True])
def test_labels_of_many_names_in_chunks_equal_those_of_one_pass(sliding, monkeypatch):
    checkpoint, vocabulary = student_with_names(203)
    image = np.random.default_rng(0).integers(0, 256, (70, 110, 3), dtype=np.uint8)
    logits = Predictor(checkpoint, sliding, vocabulary).logits(image)
    whole = torch.nn.functional.interpolate(logits[:][None], (70, 110), mode="bilinear")[0]
    whole += 1.5 * torch.from_numpy(~vocabulary.labelled)[:, None, None]
    labels, scores = labels_and_scores(logits, vocabulary.labelled, 1.5, (70, 110))
    np.testing.assert_array_equal(labels, whole.argmax(dim=0).numpy())
    np.testing.assert_allclose(scores, whole.softmax(dim=0).amax(dim=0).numpy(), rtol=1e-4)
    monkeypatch.setattr("trainer.segmenter.CLASS_CHUNK", 1000)
    np.testing.assert_array_equal(labels_and_scores(logits, vocabulary.labelled, 1.5, (70, 110))[0], labels)


def test_equal_names_go_to_the_first_of_them_in_another_chunk():
    checkpoint, vocabulary = student_with_names(100)
    doubled = replace(vocabulary, text=vocabulary.text[:50].repeat(2, 1), labelled=np.zeros(100, bool))
    prediction = Predictor(checkpoint, vocabulary=doubled)(np.full((SIDE, SIDE, 3), 90, np.uint8))
    assert prediction.unlabelled.max() < 50


def test_no_more_than_a_chunk_of_classes_is_computed_at_a_time(monkeypatch):
    checkpoint, vocabulary = student_with_names(200)
    sizes, compute = [], ClassLogits.__getitem__
    monkeypatch.setattr(ClassLogits, "__getitem__", lambda self, ids: sizes.append(len(ids)) or compute(self, ids))
    Predictor(checkpoint, vocabulary=vocabulary)(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert sum(sizes) == 200
    assert max(sizes) <= CLASS_CHUNK


def test_features_are_normalized_once_and_not_for_every_chunk(monkeypatch):
    checkpoint, vocabulary = student_with_names(200)
    predictor, calls, norm = Predictor(checkpoint, vocabulary=vocabulary), [], torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda *a, **k: calls.append(1) or norm(*a, **k))
    predictor(np.zeros((SIDE, SIDE, 3), np.uint8))
    assert checkpoint.config.logits == "cosine"
    assert len(calls) == 1
