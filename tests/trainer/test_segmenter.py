"""Names of another dataset: who gets gamma, how S and U are told; and a gamma picked without unseen labels."""

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
from trainer.predictor import Predictor
from trainer.segmenter import TopSeenUnseen, Vocabulary, top_seen_unseen

PERFECT = Checkpoint(TrainConfig(logits="dot"), Paletted(), SPLIT, torch.eye(len(CLASSES), CHANNELS), SIDE, 1, {})


def test_gamma_goes_to_what_is_new_to_the_student_and_s_and_u_go_by_the_target_s_split():
    target = Split(("beach", "cow", "sky", "road", "house"), ("cow", "sky"))
    labelled = np.array([False, False, True, True, True])
    vocabulary = Vocabulary(target, PERFECT.text, labelled)
    dataset = Drawn([striped(0, 1, 2, 3, 4, 2, 3, 4)])
    dataset.classes = target.classes
    found = evaluate(Predictor(PERFECT, vocabulary=vocabulary), dataset, [1e4, -1e4])
    assert set(np.flatnonzero(found.counts[1e4].sum(axis=0))) <= {0, 1}
    assert set(np.flatnonzero(found.counts[-1e4].sum(axis=0))) <= {2, 3, 4}
    by_target, by_training = metrics(found.counts[1e4], np.array([1, 2])), metrics(found.counts[1e4], np.array([0, 1]))
    assert found.at(1e4).summary == by_target.summary
    assert found.by_training_labels(1e4).summary == by_training.summary
    assert found.as_json()["by_training_vocabulary"]["mIoU_U"] == by_training.miou_unseen != by_target.miou_unseen


def test_on_the_dataset_of_its_training_nothing_is_told_twice():
    assert "by_training_vocabulary" not in evaluate(Predictor(PERFECT), Drawn([striped(0, 3)])).as_json()


@pytest.mark.parametrize("kind", [True, False])
def test_with_one_kind_of_class_alone_no_gamma_changes_anything(kind):
    logits = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0))
    found = top_seen_unseen(logits, np.full(4, kind), (3, 3))
    for gamma in (-5.0, 0.0, 5.0):
        np.testing.assert_array_equal(found.at(gamma), logits.argmax(dim=0).numpy())


class Leading:
    """Says class 0 (labelled) or 2 (unlabelled) by the leads it is given."""

    vocabulary = Vocabulary(
        Split(("seen", "other", "hidden"), ("hidden",)), torch.eye(3), np.array([True, True, False])
    )

    def __init__(self, leads):
        self.leads = iter(leads)

    def __call__(self, image):
        lead = next(self.leads)
        return TopSeenUnseen(np.zeros(lead.shape, int), np.full(lead.shape, 2), lead)


def seen_miou(leads, labels, gamma):
    """mIoU of the seen classes over pixels that have a seen label."""
    lead, label = np.concatenate([one.ravel() for one in leads]), np.concatenate([one.ravel() for one in labels])
    said, known = np.where(lead + gamma > 0, 2, 0), label < 2
    ious = []
    for name in (0, 1):
        if (label == name).any():
            hit = (known & (label == name) & (said == name)).sum()
            ious.append(hit / (known & ((label == name) | (said == name))).sum())
    return np.mean(ious)


def test_the_picked_gamma_is_the_greatest_that_keeps_98_per_cent_of_seen_miou_by_a_count_pixel_by_pixel():
    rng = np.random.default_rng(0)
    labels = [rng.choice(np.array([0, 0, 0, 0, 0, 1, 2, 255], np.uint8), (32, 32)) for _ in range(3)]
    leads = [np.where(label < 2, rng.normal(-3, 0.7, label.shape), rng.normal(-1, 1, label.shape)) for label in labels]
    scores = np.array([seen_miou(leads, labels, gamma) for gamma in GRID])
    wanted = GRID[np.flatnonzero(scores >= 0.98 * scores.max())[-1]]
    assert 0 < wanted < 5
    assert pick_gamma(Leading(leads), Drawn(labels)) == wanted


def test_hidden_labels_and_what_is_said_of_their_pixels_do_not_change_the_picked_gamma():
    rng = np.random.default_rng(1)
    labels = [rng.choice(np.array([0, 1, 2, 255], np.uint8), (32, 32))]
    leads = [rng.normal(-2, 1, (32, 32))]
    picked = pick_gamma(Leading(leads), Drawn(labels))
    void = [np.where(label == 2, 255, label).astype(np.uint8) for label in labels]
    assert pick_gamma(Leading(leads), Drawn(void)) == picked
    elsewhere = [np.where(label < 2, lead, 9.0) for label, lead in zip(labels, leads, strict=True)]
    assert pick_gamma(Leading(elsewhere), Drawn(labels)) == picked


@pytest.mark.parametrize("label", [[[2, 255]], [[1, 1]]])
def test_images_that_teach_nothing_are_refused_in_one_line(label):
    labels = np.array(label, np.uint8)
    refused(lambda: pick_gamma(Leading([np.array([[-1.0, -1.0]])]), Drawn([labels])), "--pick-gamma")


def test_images_without_a_label_map_are_left_out_of_the_choice():
    label, lead = np.array([[0, 255]], np.uint8), np.array([[-2.1, 1.0]])
    assert pick_gamma(Leading([lead]), Drawn([None, label])) == pick_gamma(Leading([lead]), Drawn([label])) == 2.0


def test_text_features_need_not_be_normalised():
    vocabulary = replace(PERFECT.vocabulary, text=3 * PERFECT.text)
    image = Drawn([striped(0, 1, 2, 3)]).load(0)[0]
    plain, scaled = (Predictor(PERFECT, vocabulary=w).logits(image) for w in (None, vocabulary))
    torch.testing.assert_close(plain, scaled)
