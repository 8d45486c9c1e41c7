"""PLM against loops over pixels: prototypes, adapters, generate loss, classifiers, logits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import cell_logits, draw_targets, labels_present, pixel_prototypes, unit
from torch.nn import functional as F

from data_cache.errors import UsageError
from trainer.losses.pixel import pixel_logits
from trainer.losses.plm import Adapter, Classifiers, Prototypes, build_classifiers, generate_loss, label_prototypes

SEEN = 3


def prototypes_of(features: torch.Tensor, target: torch.Tensor) -> Prototypes:
    return label_prototypes(features, target, labels_present(target.numpy(), SEEN), SEEN)


def classifiers_of(generated, prototypes: Prototypes, text, target: torch.Tensor, scope) -> Classifiers:
    return build_classifiers(generated, prototypes, text, target, labels_present(target.numpy(), SEEN), scope)


def as_dict(prototypes: Prototypes) -> dict[tuple[int, int], np.ndarray]:
    """Prototype by (image, label)."""
    keys = zip(prototypes.image.tolist(), prototypes.label.tolist(), strict=True)
    return dict(zip(keys, prototypes.features.detach().numpy(), strict=True))


def assert_same_prototypes(prototypes: Prototypes, expected: dict[tuple[int, int], np.ndarray]) -> None:
    assert len(prototypes.features) == len(expected)
    by_key = as_dict(prototypes)
    assert by_key.keys() == expected.keys()
    for key, feature in expected.items():
        np.testing.assert_allclose(by_key[key], feature, rtol=1e-4, atol=1e-5)


def draw_features(seed: int, batch: int = 2, channels: int = 4, grid: tuple[int, int] = (3, 4)) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=(batch, channels, *grid)), dtype=torch.float32)


@given(
    seed=st.integers(0, 2**32 - 1),
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    void=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_a_prototype_is_the_mean_feature_of_its_pixels_at_any_size(seed, grid, size, void):
    features = draw_features(seed, batch=3, grid=grid)
    target = draw_targets(seed, 3, size, SEEN, 3, void)
    prototypes = prototypes_of(features, torch.tensor(target))
    assert_same_prototypes(prototypes, pixel_prototypes(features.numpy(), target, SEEN))


def test_seen_classes_pool_over_the_batch_and_pseudo_labels_over_their_image():
    features = torch.zeros(2, 1, 1, 2)
    features[0, 0, 0], features[1, 0, 0] = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])
    target = torch.tensor([[[0, 3]], [[0, 3]]])
    prototypes = as_dict(prototypes_of(features, target))
    assert {key: float(feature[0]) for key, feature in prototypes.items()} == {(-1, 0): 5.5, (0, 3): 2.0, (1, 3): 20.0}


def test_images_contribute_to_a_seen_class_in_proportion_to_their_pixels():
    features = torch.tensor([[[[1.0, 1.0]]], [[[4.0, 4.0]]]])
    prototypes = prototypes_of(features, torch.tensor([[[0, 0]], [[0, -1]]]))
    assert prototypes.features.tolist() == [[2.0]]


def test_prototypes_match_nearest_upsampled_features():
    features = draw_features(1, grid=(4, 4))
    target = torch.tensor(draw_targets(1, 2, (12, 8), SEEN, 2))
    upsampled = F.interpolate(features, (12, 8), mode="nearest")
    prototypes = prototypes_of(features, target)
    for prototype, label, image in zip(prototypes.features, prototypes.label, prototypes.image, strict=True):
        images = range(2) if image < 0 else [int(image)]
        pixels = torch.cat([upsampled[b][:, target[b] == label] for b in images], dim=1)
        torch.testing.assert_close(prototype, pixels.mean(dim=1))


def test_a_class_of_one_pixel_has_a_prototype():
    features = draw_features(2, batch=1, grid=(2, 2))
    target = torch.zeros(1, 64, 64, dtype=torch.long)
    target[0, 63, 0] = 2
    prototypes = as_dict(prototypes_of(features, target))
    np.testing.assert_array_equal(prototypes[-1, 2], features[0, :, 1, 0].numpy())


def test_absent_labels_have_no_prototype():
    target = torch.tensor([[[0, 5]], [[-1, 0]]])
    prototypes = prototypes_of(draw_features(3, grid=(1, 2)), target)
    assert list(zip(prototypes.image.tolist(), prototypes.label.tolist(), strict=True)) == [(-1, 0), (0, 5)]
    assert prototypes.num_seen == 1


def test_an_unlabelled_batch_has_no_prototypes():
    prototypes = prototypes_of(draw_features(4), torch.full((2, 6, 8), -1))
    assert prototypes.features.shape == (0, 4)
    assert Adapter("transformer", 8)(torch.zeros(0, 8), torch.ones(2, 8)).shape == (0, 8)


@pytest.mark.parametrize("kind", ["transformer", "mlp", "identity"])
def test_adapters_preserve_the_shape_and_are_deterministic_in_train_mode(kind):
    adapter = Adapter(kind, 16)
    features, cls = torch.randn(5, 16), torch.randn(2, 16)
    first, second = adapter.train()(features, cls), adapter.train()(features, cls)
    assert first.shape == (5, 16)
    assert torch.equal(first, second)
    torch.testing.assert_close(adapter.eval()(features, cls), first)


def test_identity_adapter_returns_its_input():
    features = torch.randn(5, 16)
    assert torch.equal(Adapter("identity", 16)(features, torch.randn(2, 16)), features)


def test_mlp_adapter_applies_linear_relu_linear_to_each_prototype():
    adapter, features = Adapter("mlp", 6), torch.randn(4, 6)
    (first, a), (second, b) = [(m.weight.detach().numpy(), m.bias.detach().numpy()) for m in adapter.net[::2]]
    expected = np.maximum(features.numpy() @ first.T + a, 0) @ second.T + b
    assert first.shape == second.shape == (6, 6)
    np.testing.assert_allclose(adapter(features, torch.ones(1, 6)).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_transformer_adapter_normalizes_cls_tokens():
    adapter, features, cls = Adapter("transformer", 16), torch.randn(5, 16), torch.randn(3, 16)
    generated = adapter(features, cls)
    torch.testing.assert_close(adapter(features, cls * torch.tensor([[0.1], [7.0], [30.0]])), generated)
    assert not torch.allclose(adapter(features, torch.randn(3, 16)), generated)


def test_transformer_adapter_treats_all_prototypes_as_one_sequence():
    adapter, features, cls = Adapter("transformer", 16), torch.randn(5, 16), torch.randn(3, 16)
    changed = features.clone()
    changed[4] = torch.randn(16)
    assert not torch.allclose(adapter(features, cls)[0], adapter(changed, cls)[0])
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(adapter(features[order], cls), adapter(features, cls)[order])


def test_transformer_adapter_has_one_layer_8_heads_and_a_fourfold_ffn():
    net = Adapter("transformer", 16).net
    assert isinstance(net, torch.nn.TransformerDecoderLayer)
    assert net.self_attn.num_heads == net.multihead_attn.num_heads == 8
    assert net.linear1.out_features == 64


def test_transformer_adapter_rejects_a_width_not_divisible_by_8():
    with pytest.raises(UsageError, match="12") as error:
        Adapter("transformer", 12)
    assert "\n" not in str(error.value)


def draw_batch(seed: int = 5, pseudo: int = 3):
    """Features, targets, their prototypes, random generated features, and text features."""
    features = draw_features(seed)
    target = draw_targets(seed, 2, (6, 8), SEEN, pseudo)
    prototypes = prototypes_of(features, torch.tensor(target))
    generated = np.random.default_rng(seed + 1).normal(size=prototypes.features.shape)
    text = unit(np.random.default_rng(seed + 2).normal(size=(SEEN, 4)))
    return features, target, prototypes, torch.tensor(generated, dtype=torch.float32), text


def test_generate_loss_sums_over_channels_and_averages_over_present_classes():
    features, target, *_ = draw_batch()
    target[target == 1] = -1
    prototypes = prototypes_of(features, torch.tensor(target))
    generated = np.random.default_rng(0).normal(size=prototypes.features.shape)
    text = unit(np.random.default_rng(1).normal(size=(SEEN, 4)))
    rows = [row for row, image in enumerate(prototypes.image) if image < 0]
    assert [int(prototypes.label[row]) for row in rows] == [0, 2]
    expected = np.mean([((unit(generated[row]) - text[int(prototypes.label[row])]) ** 2).sum() for row in rows])
    assert generate_loss(torch.tensor(generated), prototypes, torch.tensor(text)).item() == pytest.approx(expected)


def test_generate_loss_without_seen_classes_is_zero_and_differentiable():
    prototypes = prototypes_of(draw_features(6), torch.full((2, 6, 8), SEEN))
    generated = torch.randn(2, 4, requires_grad=True)
    loss = generate_loss(generated, prototypes, torch.eye(3, 4))
    loss.backward()
    assert loss.item() == 0
    assert (generated.grad == 0).all()


def test_gradients_reach_the_student_through_prototypes_and_adapter():
    features = draw_features(7, channels=8).requires_grad_()
    target = torch.tensor(draw_targets(7, 2, (6, 8), SEEN, 2, void=0))
    adapter = Adapter("transformer", 8)
    prototypes = prototypes_of(features, target)
    generated = adapter(prototypes.features, torch.randn(2, 8))
    classifier = classifiers_of(generated, prototypes, torch.eye(3, 8), target, "image").weight[0]
    classifier[SEEN:].square().mul(torch.arange(8)).sum().backward()
    assert features.grad.isfinite().all()
    assert features.grad[0].abs().sum() > 0
    assert all(p.grad is not None for p in adapter.parameters())


def by_image(classifiers):
    """The classifier of each image without the rows that fill it up, and its targets."""
    count = len(classifiers.target)
    weights = classifiers.weight if len(classifiers.weight) == count else classifiers.weight.expand(count, -1, -1)
    rows = [weights.shape[1]] * count if classifiers.rows is None else classifiers.rows.tolist()
    return [(weight[:kept], target) for weight, kept, target in zip(weights, rows, classifiers.target, strict=True)]


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_classifier_rows_are_seen_text_features_then_pseudo_features_in_scope(scope):
    _, target, prototypes, generated, text = draw_batch()
    text_features = torch.tensor(text, dtype=torch.float32)
    classifiers = classifiers_of(generated, prototypes, text_features, torch.tensor(target), scope)
    for image, (classifier, _) in enumerate(by_image(classifiers)):
        images = [image] if scope == "image" else [0, 1]
        pseudo = [g for g, owner in zip(generated.numpy(), prototypes.image.tolist(), strict=True) if owner in images]
        expected = np.concatenate([text, unit(np.array(pseudo))])
        np.testing.assert_allclose(classifier.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", ["image", "batch"])
@pytest.mark.parametrize("missing", [None, 3, 4, 5], ids=lambda label: f"without label {label}")
def test_targets_index_the_classifier_row_of_each_label_even_with_gaps(scope, missing):
    features, target, *_ = draw_batch()
    target[0][target[0] == missing] = -1
    prototypes = prototypes_of(features, torch.tensor(target))
    generated = torch.randn(prototypes.features.shape)
    text = torch.tensor(unit(np.random.default_rng(2).normal(size=(SEEN, 4))), dtype=torch.float32)
    by_label = as_dict(replace(prototypes, features=generated))
    classifiers = classifiers_of(generated, prototypes, text, torch.tensor(target), scope)
    for image, (classifier, rows) in enumerate(by_image(classifiers)):
        assert rows.shape == target[image].shape
        for y, x in np.ndindex(target[image].shape):
            label, row = int(target[image, y, x]), int(rows[y, x])
            if label < 0:
                assert row == -1
            elif label < SEEN:
                assert row == label
            else:
                assert row >= SEEN
                np.testing.assert_allclose(classifier[row].numpy(), unit(by_label[image, label]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scope", ["image", "batch"])
def test_an_unlabelled_image_has_only_text_rows_and_no_targets(scope):
    target = torch.full((2, 6, 8), -1)
    prototypes = prototypes_of(draw_features(8), target)
    classifiers = classifiers_of(prototypes.features, prototypes, torch.eye(3, 4), target, scope)
    for classifier, rows in by_image(classifiers):
        assert torch.equal(classifier, torch.eye(3, 4))
        assert (rows == -1).all()


@pytest.mark.parametrize("kind", ["cosine", "dot"])
def test_logits_are_eq_9(kind):
    rng = np.random.default_rng(9)
    cells, classifier = rng.normal(size=(4, 3, 5)), unit(rng.normal(size=(6, 4)))
    logits = pixel_logits(torch.tensor(cells), torch.tensor(classifier), kind, 0.07).numpy()
    np.testing.assert_allclose(logits, cell_logits(cells, classifier, kind, 0.07), rtol=1e-9, atol=1e-12)


def test_cosine_logits_ignore_feature_norms_and_dot_logits_do_not():
    cells, classifier = draw_features(10, batch=1)[0], torch.eye(3, 4)
    for kind, factor in (("cosine", 1), ("dot", 5)):
        scaled = pixel_logits(5 * cells, classifier, kind, 0.07)
        torch.testing.assert_close(scaled, factor * pixel_logits(cells, classifier, kind, 0.07))
