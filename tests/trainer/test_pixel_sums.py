"""The fused pixel sums and their gradient against plain formulas through autograd."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

import trainer.losses.pixel_torch
from trainer.losses.pixel_sums import pixel_sums
from trainer.losses.pixel_terms import Terms

SEEN, ROWS = 5, 9
UPSTREAM = torch.tensor([0.7, 3.0, 1.3])


def plain_sums(logits, target, terms):
    """Image by image, every tensor at full resolution."""
    ce = focal = dice = 0.0
    enlarged = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    for z, rows in zip(enlarged.flatten(2), target.flatten(1), strict=True):
        if terms.ce and (rows >= 0).any():
            ce = ce + F.cross_entropy(z[:, rows >= 0].T, rows[rows >= 0], reduction="sum")
        if not terms.nel:
            continue
        one_hot = torch.stack([rows == label for label in range(terms.num_seen)]).to(z.dtype)
        counted = one_hot.amax(dim=0) if terms.masked else torch.ones_like(one_hot[0])
        p = z[: terms.num_seen].sigmoid()
        bce = F.binary_cross_entropy_with_logits(z[: terms.num_seen], one_hot, reduction="none")
        right = torch.where(one_hot > 0, p, 1 - p)
        alpha = torch.where(one_hot > 0, 0.25, 0.75)
        focal = focal + (alpha * (1 - right) ** 2 * bce * counted).sum() / counted.sum().clamp(min=1)
        for label in range(terms.num_seen):
            if one_hot[label].any():
                overlap = (p[label] * one_hot[label] * counted).sum()
                dice = dice + 1 - (2 * overlap + 1) / ((p[label] * counted).sum() + one_hot[label].sum() + 1)
    return torch.stack([torch.as_tensor(value, dtype=logits.dtype) for value in (ce, focal, dice)])


def draw(grid=(6, 5), size=(24, 20), images=3, scale=4.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(images, ROWS, *grid, generator=generator, dtype=torch.float64)
    target = torch.randint(-1, ROWS, (images, *size), generator=generator)
    return logits.to(dtype).requires_grad_(), target


def compare(logits, target, terms, rtol=1e-5):
    """Both sums agree, and both gradients, relative to the largest."""
    plain = plain_sums(logits.double(), target, terms)
    (plain_gradient,) = torch.autograd.grad(plain @ UPSTREAM.double(), logits, allow_unused=True)
    sums = pixel_sums(logits, target, terms)
    (gradient,) = torch.autograd.grad(sums @ UPSTREAM.to(sums.dtype), logits)
    torch.testing.assert_close(sums.double(), plain, rtol=rtol, atol=1e-6)
    torch.testing.assert_close(gradient, plain_gradient, rtol=0, atol=rtol * plain_gradient.abs().max().item())


@pytest.mark.parametrize(("ce", "nel"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize(
    ("grid", "size"), [((6, 5), (24, 20)), ((6, 5), (6, 5)), ((6, 5), (23, 19)), ((6, 5), (3, 4)), ((1, 1), (4, 4))]
)
@pytest.mark.parametrize("masked", [False, True])
def test_sums_and_gradient_match_autograd(grid, size, ce, nel, masked):
    compare(*draw(grid, size), Terms(SEEN, ce, nel, masked))


@pytest.mark.parametrize("chunk", [1, 700, 10**4, 10**9])
@pytest.mark.parametrize("masked", [False, True])
def test_chunks_of_any_size_give_the_same(monkeypatch, chunk, masked):
    monkeypatch.setattr(trainer.losses.pixel_torch, "CHUNK", {"cpu": chunk})
    compare(*draw(dtype=torch.float64), Terms(SEEN, True, True, masked), rtol=1e-12)


@pytest.mark.parametrize(("scale", "masked"), list(product((0.0, 40.0, 300.0), (False, True))))
def test_extreme_logits_stay_finite_and_exact(scale, masked):
    compare(*draw(scale=scale), Terms(SEEN, True, True, masked))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("labels", ["none", "one pixel", "one class", "no seen class", "one image"])
def test_missing_labels(labels, masked):
    logits, target = draw()
    if labels == "one class":
        target[target >= 0] = 2
    elif labels == "no seen class":
        target[(target >= 0) & (target < SEEN)] = -1
    elif labels == "one image":
        target[1:] = -1
    else:
        target[:] = -1
        target[0, 3, 3] = -1 if labels == "none" else 1
    terms = Terms(SEEN, True, True, masked)
    if labels == "none" and masked:
        sums = pixel_sums(logits, target, terms)
        assert (sums == 0).all()
        assert (torch.autograd.grad(sums.sum(), logits)[0] == 0).all()
    else:
        compare(logits, target, terms)


def test_a_row_that_an_image_lacks_gets_no_probability_and_no_gradient():
    logits, target = draw()
    target[target == ROWS - 1] = 0
    absent = logits.detach().clone()
    absent[:, -1] = torch.finfo(torch.float32).min / 4
    absent.requires_grad_()
    terms = Terms(SEEN, True, True, False)
    sums, without = pixel_sums(absent, target, terms), pixel_sums(logits[:, :-1], target, terms)
    torch.testing.assert_close(sums, without)
    (gradient,) = torch.autograd.grad(sums @ UPSTREAM, absent)
    assert (gradient[:, -1] == 0).all()
    torch.testing.assert_close(gradient[:, :-1], torch.autograd.grad(without @ UPSTREAM, logits)[0][:, :-1])


def test_the_same_twice_bit_for_bit():
    logits, target = draw(images=8)
    first, second = (
        torch.autograd.grad(pixel_sums(logits, target, Terms(SEEN, True, True, False)) @ UPSTREAM, logits)[0]
        for _ in range(2)
    )
    assert torch.equal(first, second)
