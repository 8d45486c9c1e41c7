"""Pixel learning against loops over pixels: prototypes, adapters, generate loss, classifiers, logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import cell_logits, draw_targets, pixel_prototypes, unit
from torch.nn import functional as F

from data_cache.errors import UsageError
from trainer.losses.pixel import pixel_logits
from trainer.losses.plm import Adapter, Prototypes, classifiers, generate_loss, prototypes

SEEN = 3


def found_as_dict(found: Prototypes) -> dict[tuple[int, int], np.ndarray]:
    keys = zip(found.owner.tolist(), found.label.tolist(), strict=True)
    return dict(zip(keys, found.features.detach().numpy(), strict=True))


def assert_same_prototypes(found: Prototypes, expected: dict[tuple[int, int], np.ndarray]) -> None:
    assert len(found.features) == len(expected)
    result = found_as_dict(found)
    assert result.keys() == expected.keys()
    for key, row in expected.items():
        np.testing.assert_allclose(result[key], row, rtol=1e-4, atol=1e-5)


def draw_features(seed: int, batch: int = 2, channels: int = 4, grid: tuple[int, int] = (3, 4)) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=(batch, channels, *grid)), dtype=torch.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    void=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_prototype_is_the_mean_of_its_pixels_whatever_the_sizes(seed, grid, size, void):
    features = draw_features(seed, batch=3, grid=grid)
    target = draw_targets(seed, 3, size, SEEN, 3, void)
    found = prototypes(features, torch.tensor(target), SEEN)
    assert_same_prototypes(found, pixel_prototypes(features.numpy(), target, SEEN))


def test_a_seen_class_pools_over_the_batch_and_a_pseudo_label_over_its_own_image():
    features = torch.zeros(2, 1, 1, 2)
    features[0, 0, 0], features[1, 0, 0] = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    target = torch.tensor([[[0, 3]], [[0, 3]]])
    found = found_as_dict(prototypes(features, target, SEEN))
    assert {key: float(row[0]) for key, row in found.items()} == {(-1, 0): 5.5, (0, 3): 2.0, (1, 3): 20.0}


def test_images_weigh_by_their_pixels_in_a_seen_class():
    features = torch.tensor([[[[1.0, 1.0]]], [[[4.0, 4.0]]]])
    found = prototypes(features, torch.tensor([[[0, 0]], [[0, -1]]]), SEEN)
    assert found.features.tolist() == [[2.0]]


def test_prototypes_are_those_of_features_upsampled_by_nearest():
    features = draw_features(1, grid=(4, 4))
    target = torch.tensor(draw_targets(1, 2, (12, 8), SEEN, 2))
    upsampled = F.interpolate(features, (12, 8), mode="nearest")
    found = prototypes(features, target, SEEN)
    for row, label, owner in zip(found.features, found.label, found.owner, strict=True):
        images = range(2) if owner < 0 else [int(owner)]
        pixels = torch.cat([upsampled[b][:, target[b] == label] for b in images], dim=1)
        torch.testing.assert_close(row, pixels.mean(dim=1))


def test_a_class_of_one_pixel_survives():
    features = draw_features(2, batch=1, grid=(2, 2))
    target = torch.zeros(1, 64, 64, dtype=torch.long)
    target[0, 63, 0] = 2
    found = found_as_dict(prototypes(features, target, SEEN))
    np.testing.assert_array_equal(found[-1, 2], features[0, :, 1, 0].numpy())


def test_absent_labels_have_no_prototype():
    target = torch.tensor([[[0, 5]], [[-1, 0]]])
    found = prototypes(draw_features(3, grid=(1, 2)), target, SEEN)
    assert list(zip(found.owner.tolist(), found.label.tolist(), strict=True)) == [(-1, 0), (0, 5)]
    assert found.is_seen.tolist() == [True, False]


def test_nothing_labelled_gives_no_prototypes_and_no_error():
    found = prototypes(draw_features(4), torch.full((2, 6, 8), -1), SEEN)
    assert found.features.shape == (0, 4)
    assert Adapter("transformer", 8)(torch.zeros(0, 8), torch.ones(2, 8)).shape == (0, 8)


@pytest.mark.parametrize("kind", ["transformer", "mlp", "identity"])
def test_adapters_keep_the_shape_and_are_the_same_in_train_mode(kind):
    adapter = Adapter(kind, 16)
    features, cls = torch.randn(5, 16), torch.randn(2, 16)
    first, second = adapter.train()(features, cls), adapter.train()(features, cls)
    assert first.shape == (5, 16)
    assert torch.equal(first, second)
    torch.testing.assert_close(adapter.eval()(features, cls), first)


def test_identity_adapter_changes_nothing():
    features = torch.randn(5, 16)
    assert torch.equal(Adapter("identity", 16)(features, torch.randn(2, 16)), features)


def test_mlp_adapter_is_linear_relu_linear_for_each_prototype():
    adapter, features = Adapter("mlp", 6), torch.randn(4, 6)
    (first, a), (second, b) = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in adapter.net[::2]]
    expected = np.maximum(features.numpy() @ first.T + a, 0) @ second.T + b
    assert first.shape == second.shape == (6, 6)
    np.testing.assert_allclose(adapter(features, torch.ones(1, 6)).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_transformer_adapter_sees_cls_tokens_without_their_length():
    adapter, features, cls = Adapter("transformer", 16), torch.randn(5, 16), torch.randn(3, 16)
    usual = adapter(features, cls)
    torch.testing.assert_close(adapter(features, cls * torch.tensor([[0.1], [7.0], [30.0]])), usual)
    assert not torch.allclose(adapter(features, torch.randn(3, 16)), usual)


def test_transformer_adapter_takes_all_prototypes_as_one_sequence():
    adapter, features, cls = Adapter("transformer", 16), torch.randn(5, 16), torch.randn(3, 16)
    changed = features.clone()
    changed[4] = torch.randn(16)
    assert not torch.allclose(adapter(features, cls)[0], adapter(changed, cls)[0])
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(adapter(features[order], cls), adapter(features, cls)[order])


def test_transformer_adapter_is_one_layer_of_8_heads_and_a_fourfold_ffn():
    net = Adapter("transformer", 16).net
    assert isinstance(net, torch.nn.TransformerDecoderLayer)
    assert net.self_attn.num_heads == net.multihead_attn.num_heads == 8
    assert net.linear1.out_features == 64


def test_transformer_adapter_refuses_a_width_that_8_heads_do_not_divide():
    with pytest.raises(UsageError, match="12") as error:
        Adapter("transformer", 12)
    assert "\n" not in str(error.value)


def pieces(seed: int = 5, pseudo: int = 3):
    """Features, targets, their prototypes and generated rows that differ from them."""
    features = draw_features(seed)
    target = draw_targets(seed, 2, (6, 8), SEEN, pseudo)
    found = prototypes(features, torch.tensor(target), SEEN)
    generated = torch.tensor(np.random.default_rng(seed + 1).normal(size=found.features.shape), dtype=torch.float32)
    text = unit(np.random.default_rng(seed + 2).normal(size=(SEEN, 4)))
    return features, target, found, generated, text


def test_generate_loss_sums_over_channels_and_averages_over_the_seen_classes_present():
    features, target, *_ = pieces()
    target[target == 1] = -1
    found = prototypes(features, torch.tensor(target), SEEN)
    generated = np.random.default_rng(0).normal(size=found.features.shape)
    text = unit(np.random.default_rng(1).normal(size=(SEEN, 4)))
    rows = [r for r, owner in enumerate(found.owner) if owner < 0]
    assert [int(found.label[r]) for r in rows] == [0, 2]
    expected = np.mean([((unit(generated[r]) - text[int(found.label[r])]) ** 2).sum() for r in rows])
    assert generate_loss(torch.tensor(generated), found, torch.tensor(text)).item() == pytest.approx(expected)


def test_generate_loss_without_seen_classes_is_zero_and_differentiable():
    found = prototypes(draw_features(6), torch.full((2, 6, 8), SEEN), SEEN)
    generated = torch.randn(2, 4, requires_grad=True)
    loss = generate_loss(generated, found, torch.eye(3, 4))
    loss.backward()
    assert loss.item() == 0
    assert (generated.grad == 0).all()


def test_gradients_reach_the_student_through_prototypes_and_adapter():
    features = draw_features(7, channels=8).requires_grad_()
    target = torch.tensor(draw_targets(7, 2, (6, 8), SEEN, 2, void=0))
    adapter = Adapter("transformer", 8)
    found = prototypes(features, target, SEEN)
    rows = classifiers(adapter(found.features, torch.randn(2, 8)), found, torch.eye(3, 8), target, "image")
    rows[0][0][SEEN:].square().mul(torch.arange(8)).sum().backward()
    assert features.grad.isfinite().all()
    assert features.grad[0].abs().sum() > 0
    assert all(p.grad is not None for p in adapter.parameters())


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_classifier_rows_are_seen_texts_then_the_pseudo_features_in_scope(scope):
    _, target, found, generated, text = pieces()
    result = classifiers(generated, found, torch.tensor(text, dtype=torch.float32), torch.tensor(target), scope)
    for image, (rows, _) in enumerate(result):
        owners = [image] if scope == "image" else [0, 1]
        pseudo = [g for g, owner in zip(generated.numpy(), found.owner.tolist(), strict=True) if owner in owners]
        np.testing.assert_allclose(rows.numpy(), np.concatenate([text, unit(np.array(pseudo))]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("missing", [None, 3, 4, 5], ids=lambda label: f"without label {label}")
def test_each_pixel_is_led_to_the_row_of_its_label_even_with_gaps(scope, missing):
    features, target, *_ = pieces()
    target[0][target[0] == missing] = -1
    found = prototypes(features, torch.tensor(target), SEEN)
    generated = torch.randn(found.features.shape)
    text = torch.tensor(unit(np.random.default_rng(2).normal(size=(SEEN, 4))), dtype=torch.float32)
    of_label = dict(zip(zip(found.owner.tolist(), found.label.tolist(), strict=True), generated.numpy(), strict=True))
    for image, (rows, column) in enumerate(classifiers(generated, found, text, torch.tensor(target), scope)):
        assert column.shape == target[image].shape
        for y, x in np.ndindex(target[image].shape):
            label, at = int(target[image, y, x]), int(column[y, x])
            if label < 0:
                assert at == -1
            elif label < SEEN:
                assert at == label
            else:
                assert at >= SEEN
                np.testing.assert_allclose(rows[at].numpy(), unit(of_label[image, label]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_an_image_without_any_label_has_the_texts_to_choose_from_and_nothing_to_choose(scope):
    target = torch.full((2, 6, 8), -1)
    found = prototypes(draw_features(8), target, SEEN)
    for rows, column in classifiers(found.features, found, torch.eye(3, 4), target, scope):
        assert torch.equal(rows, torch.eye(3, 4))
        assert (column == -1).all()


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_logits_are_eq_9(kind):
    rng = np.random.default_rng(9)
    cells, rows = rng.normal(size=(4, 3, 5)), unit(rng.normal(size=(6, 4)))
    found = pixel_logits(torch.tensor(cells), torch.tensor(rows), kind, 0.07).numpy()
    np.testing.assert_allclose(found, cell_logits(cells, rows, kind, 0.07), rtol=1e-9, atol=1e-12)


def test_cosine_logits_forget_the_length_of_features_and_the_dot_product_does_not():
    cells, rows = draw_features(10, batch=1)[0], torch.eye(3, 4)
    torch.testing.assert_close(pixel_logits(5 * cells, rows, "cosine", 0.07), pixel_logits(cells, rows, "cosine", 0.07))
    torch.testing.assert_close(pixel_logits(5 * cells, rows, "dot", 0.07), 5 * pixel_logits(cells, rows, "dot", 0.07))
