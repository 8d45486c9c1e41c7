"""GLM against the formulas (eq. 1-3), written out with loops in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import numpy_attention, numpy_info_nce

from trainer.config import TrainConfig
from trainer.losses.glm import EMPTY, CLSBank, attention_weights, info_nce, pool
from trainer.losses.total import TeacherLoss, TeacherTargets

TAU = 0.07


def draw(seed: int, batch: int = 3, channels: int = 5, grid: tuple[int, int] = (2, 3)):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, channels)) * 3, rng.normal(size=(batch, channels, *grid))


def filled_bank(cls: np.ndarray, image: list[int], batches: int, batch_size: int) -> CLSBank:
    bank = CLSBank(batches, batch_size, cls.shape[1]).double()
    bank.push(torch.tensor(cls), torch.tensor(image))
    return bank


def test_attention_is_the_softmax_of_eq_1():
    cls, features = draw(0)
    weights = attention_weights(torch.tensor(cls), torch.tensor(features)).numpy()
    np.testing.assert_allclose(weights, numpy_attention(cls, features), rtol=1e-10)


def test_attention_uses_the_unnormalized_cls_token():
    cls, features = draw(1)
    weights = attention_weights(torch.tensor(4 * cls), torch.tensor(features)).numpy()
    np.testing.assert_allclose(weights, numpy_attention(4 * cls, features), rtol=1e-10)
    assert np.abs(weights - numpy_attention(cls, features)).max() > 0.05


def test_pooled_feature_is_the_attention_weighted_mean_of_eq_2():
    cls, features = draw(2)
    pooled, _ = pool(torch.tensor(cls), torch.tensor(features), "attention")
    expected = [f.reshape(5, -1) @ w for f, w in zip(features, numpy_attention(cls, features), strict=True)]
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize(("mode", "expected"), [("max", np.max), ("mean", np.mean)])
def test_max_and_mean_pool_over_cells(mode, expected):
    cls, features = draw(3)
    pooled, entropy = pool(torch.tensor(cls), torch.tensor(features), mode)
    np.testing.assert_allclose(pooled.numpy(), expected(features, axis=(2, 3)), rtol=1e-12)
    assert entropy.isnan()


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0, 30), height=st.integers(1, 4), width=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_entropy_is_between_0_and_log_of_the_cell_count(seed, scale, height, width):
    cls, features = draw(seed, grid=(height, width))
    _, entropy = pool(torch.tensor(scale * cls), torch.tensor(features), "attention")
    assert -1e-9 <= entropy <= np.log(height * width) + 1e-9


def test_attention_entropy_is_averaged_over_the_batch():
    cls, features = draw(4)
    _, entropy = pool(torch.tensor(cls), torch.tensor(features), "attention")
    weights = numpy_attention(cls, features)
    assert entropy.item() == pytest.approx(-(weights * np.log(weights)).sum(axis=1).mean(), rel=1e-10)


@pytest.mark.parametrize(
    ("image", "bank_image"),
    [
        ([0, 1, 2], []),
        ([0, 1, 2], [3, 4, 5]),
        ([0, 1, 2], [2, 0, 4]),
        ([7, 7, 2], [7, 3, 2]),
        ([7, 7, 7], [7]),
    ],
    ids=["empty bank", "other images", "same images in the bank", "an image twice in the batch", "one image"],
)
def test_info_nce_is_eq_3_with_the_logarithm(image, bank_image):
    cls, _ = draw(5)
    pooled = np.random.default_rng(6).normal(size=cls.shape)
    bank_cls = np.random.default_rng(7).normal(size=(len(bank_image), 5))
    bank = filled_bank(bank_cls, bank_image, 2, 3)
    loss = info_nce(torch.tensor(pooled), torch.tensor(cls), torch.tensor(image), bank, TAU)
    assert loss.item() == pytest.approx(numpy_info_nce(pooled, cls, image, bank_cls, bank_image, TAU), rel=1e-9)


@given(
    seed=st.integers(0, 2**32 - 1),
    image=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    bank_image=st.lists(st.integers(0, 3), max_size=6),
    tau=st.floats(0.05, 2),
)
@settings(max_examples=60, deadline=None)
def test_info_nce_is_eq_3_for_any_repetition_of_images(seed, image, bank_image, tau):
    rng = np.random.default_rng(seed)
    cls, pooled, bank_cls = (rng.normal(size=(n, 4)) for n in (len(image), len(image), len(bank_image)))
    bank = filled_bank(bank_cls, bank_image, 3, 2)
    loss = info_nce(torch.tensor(pooled), torch.tensor(cls), torch.tensor(image), bank, tau)
    expected = numpy_info_nce(pooled, cls, image, bank_cls, bank_image, tau)
    assert loss.item() == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_an_entry_of_the_same_image_is_never_its_own_negative():
    cls = np.eye(3)
    bank = filled_bank(cls, [4, 5, 6], 1, 3)
    once = info_nce(torch.tensor(cls[:1]), torch.tensor(cls[:1]), torch.tensor([4]), bank, TAU)
    twice = info_nce(torch.tensor(cls[[0, 0]]), torch.tensor(cls[[0, 0]]), torch.tensor([4, 4]), bank, TAU)
    # the two other images in the bank are orthogonal: exp(0) each, against exp(1 / tau)
    expected = np.log1p(2 * np.exp(-1 / TAU))
    assert once.item() == pytest.approx(expected, rel=1e-6)
    assert twice.item() == pytest.approx(expected, rel=1e-6)


def test_bank_starts_empty_and_empty_entries_are_not_negatives():
    bank = CLSBank(24, 16, 5)
    assert bank.cls.shape == (384, 5)
    assert (bank.image == EMPTY).all()
    cls, pooled = torch.randn(2, 2, 5)
    with_empty = info_nce(pooled, cls, torch.tensor([0, 1]), bank, TAU)
    without = info_nce(pooled, cls, torch.tensor([0, 1]), CLSBank(0, 2, 5), TAU)
    assert with_empty.item() == without.item()


def test_bank_is_a_fifo_of_n_batches():
    bank = CLSBank(3, 2, 4)
    for step in range(5):
        bank.push(torch.full((2, 4), float(step)), torch.tensor([2 * step, 2 * step + 1]))
        newest_first = [i for old in range(step, max(-1, step - 3), -1) for i in (2 * old, 2 * old + 1)]
        assert bank.image[bank.image != EMPTY].tolist() == newest_first
        assert bank.cls[bank.image != EMPTY, 0].tolist() == [i // 2 for i in newest_first]
    assert len(bank.cls) == len(bank.image) == 6


def test_bank_of_size_0_stays_empty():
    bank = CLSBank(0, 4, 3)
    bank.push(torch.ones(4, 3), torch.arange(4))
    assert bank.cls.shape == (0, 3)
    assert bank.image.shape == (0,)


def test_bank_round_trips_through_its_state_dict():
    bank, copy = CLSBank(2, 2, 3), CLSBank(2, 2, 3)
    bank.push(torch.randn(2, 3), torch.tensor([5, 9]))
    copy.load_state_dict(bank.state_dict())
    for one in (bank, copy):
        one.push(torch.ones(2, 3), torch.tensor([1, 2]))
    assert torch.equal(bank.cls, copy.cls)
    assert copy.image.tolist() == [1, 2, 5, 9]


def test_bank_detaches_its_entries():
    bank = CLSBank(1, 2, 3)
    bank.push(torch.randn(2, 3, requires_grad=True), torch.tensor([0, 1]))
    assert not bank.cls.requires_grad


def test_a_batch_enters_the_bank_after_its_own_loss():
    config = TrainConfig(ce=False, nel=False, generate=False, vla="identity", bank=2, batch_size=2)
    loss = TeacherLoss(config, torch.randn(3, 5)).double()
    target, bank_cls, bank_image = torch.full((2, 4, 6), -1), np.zeros((0, 5)), []
    for step in range(3):
        cls, features = draw(10 + step, batch=2)
        # new images at each step, so that every bank entry is a negative
        image = [2 * step, 2 * step + 1]
        unlabelled = np.zeros((2, 3), dtype=bool)
        terms = loss(torch.tensor(features), TeacherTargets(torch.tensor(cls), target, torch.tensor(image), unlabelled))
        pooled = [f.reshape(5, -1) @ w for f, w in zip(features, numpy_attention(cls, features), strict=True)]
        expected = numpy_info_nce(pooled, cls, image, bank_cls, bank_image, TAU)
        assert terms["global"].item() == pytest.approx(expected, rel=1e-9)
        bank_cls, bank_image = np.concatenate([bank_cls, cls]), bank_image + image


@pytest.mark.parametrize("mode", ["attention", "max", "mean"])
def test_gradients_reach_the_features_and_are_finite(mode):
    cls, array = draw(8)
    features = torch.tensor(array, requires_grad=True)
    pooled, _ = pool(torch.tensor(cls), features, mode)
    info_nce(pooled, torch.tensor(cls), torch.arange(3), CLSBank(1, 3, 5).double(), TAU).backward()
    assert features.grad.isfinite().all()
    assert (features.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_glm_gradient_matches_finite_differences():
    cls, array = draw(9)
    bank = filled_bank(np.random.default_rng(1).normal(size=(3, 5)), [0, 7, 8], 2, 3)

    def loss(features):
        pooled, _ = pool(torch.tensor(cls), features, "attention")
        return info_nce(pooled, torch.tensor(cls), torch.tensor([0, 1, 1]), bank, 0.5)

    assert torch.autograd.gradcheck(loss, torch.tensor(array, requires_grad=True))
