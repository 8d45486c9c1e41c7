"""The loss of a batch against a plain computation over its pixels, without autograd, striding or recomputation."""

from itertools import product

import numpy as np
import pytest
import torch
from oracles import DICE_WEIGHT, FOCAL_WEIGHT, draw_targets, labels_present, numpy_pixel_terms, unit

from trainer.config import TrainConfig
from trainer.losses.total import TeacherLoss, TeacherTargets

SEEN, CHANNELS, TAU = 3, 8, 0.07
TERMS = ("global", "ce", "focal", "dice", "generate")


def loss_config(**settings: object) -> TrainConfig:
    return TrainConfig(**({"vla": "identity", "bank": 2, "batch_size": 2} | settings))


def draw_inputs(seed: int = 0, batch: int = 2, grid: tuple[int, int] = (3, 4)):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(batch, CHANNELS, *grid)),
        rng.normal(size=(batch, CHANNELS)) * 2,
        unit(rng.normal(size=(SEEN, CHANNELS))),
    )


def build(config: TrainConfig, text: np.ndarray, seed: int = 0) -> TeacherLoss:
    torch.manual_seed(seed)
    return TeacherLoss(config, torch.tensor(text)).double()


def targets_of(cls: np.ndarray, target: np.ndarray) -> TeacherTargets:
    present = labels_present(target, SEEN)
    return TeacherTargets(torch.tensor(cls), torch.tensor(target), torch.arange(len(cls)), present)


def run(config: TrainConfig, features, cls, text, target, requires_grad: bool = False):
    """Loss terms of a first batch, and the tensor of its features."""
    tensor = torch.tensor(features, requires_grad=requires_grad)
    targets = targets_of(cls, target)
    return build(config, text)(tensor, targets), tensor


def assert_terms(terms: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("ignore", "scope", "logits"), list(product(("negative", "masked"), ("image", "batch"), ("cosine", "dot")))
)
def test_pixel_terms_match_the_formulas_over_the_batch(ignore, scope, logits):
    config = loss_config(glm="off", nel_ignore=ignore, pseudo_scope=scope, logits=logits)
    features, cls, text = draw_inputs(1)
    target = draw_targets(1, 2, (7, 9), SEEN, 3)
    terms, _ = run(config, features, cls, text, target)
    assert_terms(terms, numpy_pixel_terms(config, features, text, target))


@pytest.mark.parametrize("ignore", ["negative", "masked"])
def test_absent_classes_count_in_focal_but_not_in_dice(ignore):
    config = loss_config(glm="off", nel_ignore=ignore)
    features, cls, text = draw_inputs(2)
    target = draw_targets(2, 2, (6, 8), SEEN, 2)
    target[0][target[0] == 1] = -1
    target[:][target == 2] = 3
    terms, _ = run(config, features, cls, text, target)
    assert_terms(terms, numpy_pixel_terms(config, features, text, target))


def test_nel_ignore_decides_whether_unlabelled_pixels_are_negatives_or_masked():
    features, cls, text = draw_inputs(3)
    target = draw_targets(3, 2, (6, 8), SEEN, 2, void=0.5)
    negative, masked = (
        run(loss_config(glm="off", nel_ignore=mode), features, cls, text, target)[0] for mode in ("negative", "masked")
    )
    assert abs(negative["focal"] - masked["focal"]) > 1e-3
    assert abs(negative["dice"] - masked["dice"]) > 1e-3
    assert negative["ce"] == masked["ce"]


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_loss_stride_samples_every_nth_pixel_from_the_middle(stride):
    config = loss_config(glm="off", loss_stride=stride)
    features, cls, text = draw_inputs(4)
    target = draw_targets(4, 2, (12, 16), SEEN, 2)
    terms, _ = run(config, features, cls, text, target)
    assert_terms(terms, numpy_pixel_terms(config, features, text, target))


def test_total_is_the_weighted_sum_of_the_terms():
    weights = {"weight_global": 0.3, "weight_ce": 2.0, "weight_focal": 7.0, "weight_dice": 0.5, "weight_generate": 11.0}
    features, cls, text = draw_inputs(6)
    terms, _ = run(loss_config(**weights), features, cls, text, draw_targets(6, 2, (6, 8), SEEN, 2))
    assert all(terms[name] > 0 for name in TERMS)
    assert terms["total"].item() == pytest.approx(sum(weights[f"weight_{name}"] * terms[name].item() for name in TERMS))
    pixel = sum(weights[f"weight_{name}"] * terms[name].item() for name in ("ce", "focal", "dice"))
    assert terms["pixel"].item() == pytest.approx(pixel)


def test_default_weight_is_100_for_focal_and_1_for_all_other_terms():
    features, cls, text = draw_inputs(6)
    terms, _ = run(loss_config(), features, cls, text, draw_targets(6, 2, (6, 8), SEEN, 2))
    expected = (
        terms["global"] + terms["ce"] + FOCAL_WEIGHT * terms["focal"] + DICE_WEIGHT * terms["dice"] + terms["generate"]
    )
    assert terms["total"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("switch", "removed"),
    [
        ({"glm": "off"}, "global"),
        ({"ce": False}, "ce"),
        ({"nel": False}, "focal dice"),
        ({"generate": False}, "generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_switch_removes_only_its_own_term(switch, removed):
    features, cls, text = draw_inputs(7)
    target = draw_targets(7, 2, (6, 8), SEEN, 2)
    full, _ = run(loss_config(), features, cls, text, target)
    reduced, _ = run(loss_config(**switch), features, cls, text, target)
    for name in TERMS:
        assert reduced[name].item() == (0 if name in removed.split() else full[name].item())
    difference = sum((FOCAL_WEIGHT if name == "focal" else 1) * full[name].item() for name in removed.split())
    assert full["total"].item() - reduced["total"].item() == pytest.approx(difference)


def test_entropy_is_reported_unless_glm_is_off():
    features, cls, text = draw_inputs(7)
    target = draw_targets(7, 2, (6, 8), SEEN, 2)
    assert "entropy" in run(loss_config(), features, cls, text, target)[0]
    assert "entropy" not in run(loss_config(glm="off"), features, cls, text, target)[0]


@pytest.mark.parametrize("vla", ["transformer", "mlp", "identity"])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("labels", ["no pseudo label", "no seen pixel", "none", "only in one image", "one pixel"])
def test_batches_with_missing_labels_are_valid(labels, scope, vla):
    features, cls, text = draw_inputs(8)
    target = draw_targets(8, 2, (6, 8), SEEN, 2)
    if labels == "no pseudo label":
        target[target >= SEEN] = -1
    elif labels == "no seen pixel":
        target[target < SEEN] = -1
    elif labels == "only in one image":
        target[1] = -1
    else:
        target[:] = -1
        target[0, 0, 0] = -1 if labels == "none" else 1
    config = loss_config(vla=vla, pseudo_scope=scope)
    terms, tensor = run(config, features, cls, text, target, requires_grad=True)
    terms["total"].backward()
    assert all(value.isfinite() for value in terms.values())
    assert tensor.grad.isfinite().all()
    if vla == "identity":
        assert_terms(terms, numpy_pixel_terms(config, features, text, target))
    if labels == "none":
        assert terms["ce"] == terms["dice"] == terms["generate"] == 0
        assert terms["focal"] > 0


def test_a_fully_masked_batch_has_zero_loss_and_gradient():
    features, cls, text = draw_inputs(8)
    config = loss_config(glm="off", nel_ignore="masked")
    terms, tensor = run(config, features, cls, text, np.full((2, 6, 8), -1), requires_grad=True)
    terms["total"].backward()
    assert terms["total"] == 0
    assert (tensor.grad == 0).all()


@pytest.mark.parametrize("logits", ["cosine", "dot"])
def test_total_gradient_matches_finite_differences(logits):
    config = loss_config(vla="mlp", logits=logits, tau=0.5)
    features, cls, text = draw_inputs(9, grid=(2, 2))
    targets = targets_of(cls, draw_targets(9, 2, (4, 4), SEEN, 2))

    def total(tensor):
        # a new bank at each call, because the loss must be a pure function
        return build(config, text)(tensor, targets)["total"]

    assert torch.autograd.gradcheck(total, torch.tensor(features, requires_grad=True), fast_mode=True)
