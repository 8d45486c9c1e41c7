"""Every loss and its gradient, on fixed inputs in float64, against the formulas in numpy and their own differences.

The gradient is that of the formulas, not of the code: finite differences are taken of the numpy side.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from oracles import (
    DICE_WEIGHT,
    EMPTY,
    FOCAL_WEIGHT,
    draw_targets,
    labels_present,
    numpy_attention,
    numpy_info_nce,
    numpy_pixel_terms,
)
from oracles import unit as unit_rows

from trainer.config import TrainConfig
from trainer.losses.total import TeacherLoss, TeacherTargets

SEEN, CHANNELS = 3, 8
STEP = 1e-6
TERMS = ("global", "ce", "focal", "dice", "generate")


def ordinary() -> np.ndarray:
    return draw_targets(1, 2, (7, 9), SEEN, 3)


def absent_classes() -> np.ndarray:
    target = ordinary()
    target[(target == 1) | (target == 2)] = 0
    return target


def nothing_ignored() -> np.ndarray:
    """One image all of seen labels, without a pseudo label or a pixel that has none; the other as usual."""
    target = draw_targets(2, 2, (7, 9), SEEN, 3, void=0.0)
    target[0] %= SEEN
    return target


def nothing_seen() -> np.ndarray:
    target = ordinary()
    target[0][target[0] < SEEN] = EMPTY
    return target


def no_pseudo_label() -> np.ndarray:
    target = ordinary()
    target[target >= SEEN] = EMPTY
    return target


def pixels_ignored_throughout() -> np.ndarray:
    return np.full((2, 7, 9), EMPTY)


def one_image() -> np.ndarray:
    return ordinary()[:1]


def one_cluster() -> np.ndarray:
    return np.minimum(ordinary(), SEEN)


def clusters_254() -> np.ndarray:
    """As many as one byte can number, one reserved, each with a pixel or more."""
    target = draw_targets(3, 2, (18, 18), SEEN, 254)
    target[0] = np.resize(np.arange(SEEN + 254), (18, 18))
    return target


BATCHES = (
    *(ordinary, absent_classes, nothing_ignored, nothing_seen, no_pseudo_label),
    *(pixels_ignored_throughout, one_image, one_cluster, clusters_254),
)
SETTINGS = {
    "default": {},
    "dot": {"logits": "dot"},
    "masked": {"nel_ignore": "masked"},
    "image": {"pseudo_scope": "image"},
    "max": {"glm": "max"},
    "mean": {"glm": "mean"},
}


class Golden:
    """Fixed features, CLS tokens, texts and a filled bank around some targets."""

    def __init__(self, target: np.ndarray, given: dict[str, str]) -> None:
        rng, batch = np.random.default_rng(4), len(target)
        grid = (4, 5) if target.size < 500 else (16, 17)
        self.config = TrainConfig(**({"vla": "identity", "bank": 2, "batch_size": batch, "tau": 0.5} | given))
        self.target = target
        self.features = rng.normal(size=(batch, CHANNELS, *grid))
        self.cls = rng.normal(size=(batch, CHANNELS)) * 2
        self.text = unit_rows(rng.normal(size=(SEEN, CHANNELS)))
        self.image = np.arange(batch)
        self.bank_cls = rng.normal(size=(2 * batch, CHANNELS))
        self.bank_image = np.array([0, 7, EMPTY, 9][: 2 * batch])
        self.directions = rng.normal(size=(3, *self.features.shape))

    def by_formula(self, features: np.ndarray) -> dict[str, float]:
        cells = features.reshape(*features.shape[:2], -1)
        how = {
            "attention": lambda: np.einsum("bcl,bl->bc", cells, numpy_attention(self.cls, features)),
            "max": lambda: cells.max(axis=2),
            "mean": lambda: cells.mean(axis=2),
        }
        pooled = how[self.config.glm]()
        terms = numpy_pixel_terms(self.config, features, self.text, self.target)
        terms["global"] = numpy_info_nce(pooled, self.cls, self.image, self.bank_cls, self.bank_image, self.config.tau)
        weights = {"focal": FOCAL_WEIGHT, "dice": DICE_WEIGHT}
        return terms | {"total": sum(weights.get(name, 1.0) * value for name, value in terms.items())}

    def by_code(self, moved: np.ndarray | None = None) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        loss = TeacherLoss(self.config, torch.tensor(self.text)).double()
        loss.bank.cls, loss.bank.image = torch.tensor(self.bank_cls), torch.tensor(self.bank_image)
        features = torch.tensor(self.features if moved is None else moved, requires_grad=True)
        targets = map(torch.tensor, (self.cls, self.target, self.image))
        return loss(features, TeacherTargets(*targets, labels_present(self.target, SEEN))), features

    def along(self, term: torch.Tensor, features: torch.Tensor) -> list[float]:
        """Autograd's derivative in each direction; zero for a term without a graph."""
        if not term.requires_grad:
            return [0.0] * len(self.directions)
        (gradient,) = torch.autograd.grad(term, features, retain_graph=True, allow_unused=True)
        return [0.0 if gradient is None else float((gradient.numpy() * one).sum()) for one in self.directions]

    def slopes(self, value: Callable[[np.ndarray], dict[str, float]]) -> dict[str, list[float]]:
        """Central differences along each direction."""
        pairs = [
            (value(self.features + STEP * along), value(self.features - STEP * along)) for along in self.directions
        ]
        return {name: [(up[name] - down[name]) / (2 * STEP) for up, down in pairs] for name in pairs[0][0]}


@pytest.mark.parametrize(
    ("batch", "setting"),
    # the largest once only: numpy takes its pixels one by one
    [(batch, name) for batch in BATCHES for name in SETTINGS if batch is not clusters_254 or name == "default"],
    ids=lambda one: getattr(one, "__name__", one),
)
def test_every_loss_and_its_gradient_are_those_of_the_formulas(batch, setting):
    golden = Golden(batch(), SETTINGS[setting])
    terms, features = golden.by_code()
    expected = golden.by_formula(golden.features)
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-12)
    slopes = golden.slopes(golden.by_formula)
    for name in (*TERMS, "total"):
        assert golden.along(terms[name], features) == pytest.approx(slopes[name], rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("vla", ["transformer", "mlp"])
@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: batch.__name__)
def test_gradients_through_an_adapter_with_weights_are_those_of_finite_differences(batch, vla):
    golden = Golden(batch(), {"vla": vla})
    terms, features = golden.by_code()
    with torch.no_grad():
        slopes = golden.slopes(lambda moved: {name: value.item() for name, value in golden.by_code(moved)[0].items()})
    for name in (*TERMS, "total"):
        assert golden.along(terms[name], features) == pytest.approx(slopes[name], rel=1e-5, abs=1e-7), name
