"""The loss of a batch against one plain computation over its pixels, without graphs, strides or recomputation."""

from itertools import product

import numpy as np
import pytest
import torch
from oracles import DICE_WEIGHT, FOCAL_WEIGHT, draw_targets, numpy_pixel_terms, unit

import trainer.losses.pixel
from trainer.config import TrainConfig
from trainer.losses.total import TeacherLoss, TeacherTargets

SEEN, CHANNELS, TAU = 3, 8, 0.07
TERMS = ("global", "ce", "focal", "dice", "generate")


def config_of(**given: object) -> TrainConfig:
    return TrainConfig(**({"vla": "identity", "bank": 2, "batch_size": 2} | given))


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


def run(config: TrainConfig, features, cls, text, target, grow: bool = False):
    """Loss terms of a first batch, and the features they came from."""
    tensor = torch.tensor(features, requires_grad=grow)
    targets = TeacherTargets(torch.tensor(cls), torch.tensor(target), torch.arange(len(cls)))
    return build(config, text)(tensor, targets), tensor


def assert_terms(terms: dict[str, torch.Tensor], expected: dict[str, float]) -> None:
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("ignore", "scope", "logits"), list(product(("negative", "masked"), ("image", "batch"), ("cosine", "dot")))
)
def test_pixel_terms_are_the_formulas_summed_over_the_batch(ignore, scope, logits):
    config = config_of(glm="off", nel_ignore=ignore, pseudo_scope=scope, logits=logits)
    features, cls, text = draw_inputs(1)
    target = draw_targets(1, 2, (7, 9), SEEN, 3)
    terms, _ = run(config, features, cls, text, target)
    assert_terms(terms, numpy_pixel_terms(config, features, text, target))


@pytest.mark.parametrize("ignore", ["negative", "masked"])
def test_absent_classes_count_in_focal_and_not_in_dice(ignore):
    config = config_of(glm="off", nel_ignore=ignore)
    features, cls, text = draw_inputs(2)
    target = draw_targets(2, 2, (6, 8), SEEN, 2)
    target[0][target[0] == 1] = -1
    target[:][target == 2] = 3
    terms, _ = run(config, features, cls, text, target)
    assert_terms(terms, numpy_pixel_terms(config, features, text, target))


def test_pixels_without_a_seen_label_are_negatives_or_masked_as_asked():
    features, cls, text = draw_inputs(3)
    target = draw_targets(3, 2, (6, 8), SEEN, 2, void=0.5)
    negative, masked = (
        run(config_of(glm="off", nel_ignore=i), features, cls, text, target)[0] for i in ("negative", "masked")
    )
    assert abs(negative["focal"] - masked["focal"]) > 1e-3
    assert abs(negative["dice"] - masked["dice"]) > 1e-3
    assert negative["ce"] == masked["ce"]


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_a_loss_stride_takes_every_nth_pixel_from_the_middle(stride):
    config = config_of(glm="off", loss_stride=stride)
    features, cls, text = draw_inputs(4)
    target = draw_targets(4, 2, (12, 16), SEEN, 2)
    terms, _ = run(config, features, cls, text, target)
    assert_terms(terms, numpy_pixel_terms(config, features, text, target))


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_recomputing_image_by_image_gives_the_gradients_of_direct_autograd(monkeypatch, scope):
    config = config_of(vla="transformer", pseudo_scope=scope)
    features, cls, text = draw_inputs(5, batch=3)
    target = draw_targets(5, 3, (6, 8), SEEN, 2)

    def gradients():
        loss, grown = build(config, text), torch.tensor(features, requires_grad=True)
        terms = loss(grown, TeacherTargets(torch.tensor(cls), torch.tensor(target), torch.arange(3)))
        terms["total"].backward()
        return [grown.grad, *(p.grad for p in loss.adapter.parameters())]

    recomputed, calls = gradients(), []
    monkeypatch.setattr(trainer.losses.pixel, "checkpoint", lambda f, *inputs, **_: calls.append(f) or f(*inputs))
    for one, other in zip(recomputed, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert len(calls) == 3


def test_total_is_the_weighted_sum_of_the_terms():
    weights = {"weight_global": 0.3, "weight_ce": 2.0, "weight_focal": 7.0, "weight_dice": 0.5, "weight_generate": 11.0}
    features, cls, text = draw_inputs(6)
    terms, _ = run(config_of(**weights), features, cls, text, draw_targets(6, 2, (6, 8), SEEN, 2))
    assert all(terms[name] > 0 for name in TERMS)
    assert terms["total"].item() == pytest.approx(sum(weights[f"weight_{name}"] * terms[name].item() for name in TERMS))
    pixel = sum(weights[f"weight_{name}"] * terms[name].item() for name in ("ce", "focal", "dice"))
    assert terms["pixel"].item() == pytest.approx(pixel)


def test_focal_weighs_100_and_everything_else_1():
    features, cls, text = draw_inputs(6)
    terms, _ = run(config_of(), features, cls, text, draw_targets(6, 2, (6, 8), SEEN, 2))
    expected = (
        terms["global"] + terms["ce"] + FOCAL_WEIGHT * terms["focal"] + DICE_WEIGHT * terms["dice"] + terms["generate"]
    )
    assert terms["total"].item() == pytest.approx(expected.item())


@pytest.mark.parametrize(
    ("switch", "gone"),
    [
        ({"glm": "off"}, "global"),
        ({"ce": False}, "ce"),
        ({"nel": False}, "focal dice"),
        ({"generate": False}, "generate"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_switch_removes_its_term_and_no_other(switch, gone):
    features, cls, text = draw_inputs(7)
    target = draw_targets(7, 2, (6, 8), SEEN, 2)
    full, _ = run(config_of(), features, cls, text, target)
    less, _ = run(config_of(**switch), features, cls, text, target)
    for name in TERMS:
        assert less[name].item() == (0 if name in gone.split() else full[name].item())
    removed = sum((FOCAL_WEIGHT if name == "focal" else 1) * full[name].item() for name in gone.split())
    assert full["total"].item() - less["total"].item() == pytest.approx(removed)


def test_entropy_is_told_but_is_no_loss():
    features, cls, text = draw_inputs(7)
    target = draw_targets(7, 2, (6, 8), SEEN, 2)
    assert "entropy" in run(config_of(), features, cls, text, target)[0]
    assert "entropy" not in run(config_of(glm="off"), features, cls, text, target)[0]


@pytest.mark.parametrize("vla", ["transformer", "mlp", "identity"])
@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize(
    "kind", ["no pseudo label", "no seen pixel", "nothing labelled", "one image bare", "one pixel"]
)
def test_a_batch_that_lacks_labels_is_normal(kind, scope, vla):
    features, cls, text = draw_inputs(8)
    target = draw_targets(8, 2, (6, 8), SEEN, 2)
    if kind == "no pseudo label":
        target[target >= SEEN] = -1
    elif kind == "no seen pixel":
        target[target < SEEN] = -1
    elif kind == "one image bare":
        target[1] = -1
    else:
        target[:] = -1
        target[0, 0, 0] = -1 if kind == "nothing labelled" else 1
    config = config_of(vla=vla, pseudo_scope=scope)
    terms, grown = run(config, features, cls, text, target, grow=True)
    terms["total"].backward()
    assert all(value.isfinite() for value in terms.values())
    assert grown.grad.isfinite().all()
    if vla == "identity":
        assert_terms(terms, numpy_pixel_terms(config, features, text, target))
    if kind == "nothing labelled":
        assert terms["ce"] == terms["dice"] == terms["generate"] == 0
        assert terms["focal"] > 0


def test_nothing_labelled_and_masked_leaves_no_pixel_loss_at_all():
    features, cls, text = draw_inputs(8)
    config = config_of(glm="off", nel_ignore="masked")
    terms, grown = run(config, features, cls, text, np.full((2, 6, 8), -1), grow=True)
    terms["total"].backward()
    assert terms["total"] == 0
    assert (grown.grad == 0).all()


@pytest.mark.parametrize("logits", ["cosine", "dot"])
def test_gradient_of_the_whole_loss_is_that_of_finite_differences(logits):
    config = config_of(vla="mlp", logits=logits, tau=0.5)
    features, cls, text = draw_inputs(9, grid=(2, 2))
    targets = TeacherTargets(torch.tensor(cls), torch.tensor(draw_targets(9, 2, (4, 4), SEEN, 2)), torch.arange(2))

    def total(grown):
        # a bank of its own each time: the loss must be a function
        return build(config, text)(grown, targets)["total"]

    assert torch.autograd.gradcheck(total, torch.tensor(features, requires_grad=True), fast_mode=True)
