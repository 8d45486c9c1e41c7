"""The pixel sums as two Triton kernels, in which no upsampled logit is ever stored.

The forward kernel has one program per tile of pixels: it interpolates the logits of a few rows at a time and keeps a
running log-sum-exp. The backward kernel has one program per tile of cells and block of rows: it visits the pixels that
each cell contributes to, and so needs no atomic addition. Both are deterministic.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from trainer.losses.pixel_terms import FOCAL_ALPHA, Statistics, Terms, Upstream

PIXELS, CELLS, ROWS = 128, 64, 16
"""Pixels of a forward tile, cells of a backward tile, and rows of logits at a time."""


def statistics(
    logits: Float[Tensor, "image row y x"], target: Int[Tensor, "image height width"], terms: Terms
) -> Statistics:
    """The forward pass."""
    images, rows, *grid = logits.shape
    height, width = target.shape[1:]
    tiles = triton.cdiv(height * width, PIXELS)
    new = logits.contiguous().new_zeros
    log_sum, ce, focal = new(target.shape), new(images, tiles), new(images, tiles)
    probability, overlap = (new(images, tiles, max(terms.num_seen, 1)) for _ in range(2))
    _forward[(tiles, images)](
        logits.contiguous(),
        target.contiguous(),
        log_sum,
        ce,
        focal,
        probability,
        overlap,
        rows,
        terms.num_seen,
        *grid,
        height,
        width,
        CE=terms.ce,
        NEL=terms.nel,
        MASKED=terms.masked,
        ALPHA=FOCAL_ALPHA,
        PIXELS=PIXELS,
        ROWS=ROWS,
        enable_fp_fusion=True,
    )
    by_class = (part.sum(dim=1)[:, : terms.num_seen] for part in (probability, overlap))
    return Statistics(log_sum, ce.sum(dim=1), focal.sum(dim=1), *by_class)


def gradient(
    logits: Float[Tensor, "image row y x"],
    target: Int[Tensor, "image height width"],
    log_sum: Float[Tensor, "image height width"],
    terms: Terms,
    upstream: Upstream,
) -> Float[Tensor, "image row y x"]:
    """The backward pass."""
    images, rows, *grid = logits.shape
    height, width = target.shape[1:]
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _backward[(triton.cdiv(grid[0] * grid[1], CELLS), triton.cdiv(rows, ROWS), images)](
        logits.contiguous(),
        target.contiguous(),
        log_sum,
        upstream.ce.contiguous(),
        upstream.focal.contiguous(),
        upstream.miss.contiguous(),
        upstream.hit.contiguous(),
        result,
        rows,
        terms.num_seen,
        *grid,
        height,
        width,
        # pixels between the centers of the cells before and after, along each side
        SPAN_Y=triton.cdiv(2 * height, grid[0]),
        SPAN_X=triton.cdiv(2 * width, grid[1]),
        CE=terms.ce,
        NEL=terms.nel,
        MASKED=terms.masked,
        ALPHA=FOCAL_ALPHA,
        CELLS=CELLS,
        ROWS=ROWS,
        enable_fp_fusion=True,
    )
    return result


@triton.jit
def _corner(pixel, size, pixels):
    """The two cells that a pixel lies between, and the weight of the second (bilinear, align_corners=False)."""
    position = tl.maximum((pixel.to(tl.float32) + 0.5) * size / pixels - 0.5, 0.0)
    first = tl.minimum(position.to(tl.int32), size - 1)
    return first, tl.minimum(first + 1, size - 1), position - first.to(tl.float32)


@triton.jit
def _interpolated(logits, row, mask, y_corner, x_corner, x_size):
    """Rows of logits at some pixels, from the four cells around each of them."""
    above, below, weight_y = y_corner
    left, right, weight_x = x_corner
    top_left = tl.load(logits + row + (above * x_size + left)[None, :], mask=mask, other=0.0)
    top_right = tl.load(logits + row + (above * x_size + right)[None, :], mask=mask, other=0.0)
    bottom_left = tl.load(logits + row + (below * x_size + left)[None, :], mask=mask, other=0.0)
    bottom_right = tl.load(logits + row + (below * x_size + right)[None, :], mask=mask, other=0.0)
    top = top_left + weight_x[None, :] * (top_right - top_left)
    bottom = bottom_left + weight_x[None, :] * (bottom_right - bottom_left)
    return top + weight_y[None, :] * (bottom - top)


@triton.jit
def _softplus(z):
    return tl.maximum(z, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(z)))


@triton.jit
def _focal(z, hit, softplus, ALPHA: tl.constexpr):
    """Probabilities and focal loss (eq. 12)."""
    p, q = tl.exp(z - softplus), tl.exp(-softplus)
    return p, tl.where(hit, ALPHA * q * q * (softplus - z), (1 - ALPHA) * p * p * softplus)


@triton.jit
def _nel_gradient(z, hit, focal, miss, hits, ALPHA: tl.constexpr):
    """The gradient of focal and dice."""
    softplus = _softplus(z)
    p, q = tl.exp(z - softplus), tl.exp(-softplus)
    negative = (1 - ALPHA) * focal * p * p * (2 * q * softplus + p) + miss * p * q
    positive = -ALPHA * focal * q * q * (2 * p * (softplus - z) + q) + (miss - hits) * p * q
    return tl.where(hit, positive, negative)


@triton.jit
def _share(corner, cell):
    """How much a pixel takes from a cell; at the edge, both of its cells are the same."""
    first, second, weight = corner
    return tl.where(first == cell, 1 - weight, 0.0) + tl.where(second == cell, weight, 0.0)


@triton.jit
def _first_pixel(cell, size, pixels):
    """The first pixel after the center of the cell before."""
    return tl.ceil((cell.to(tl.float32) - 0.5) * pixels / size - 0.5).to(tl.int32)


# fmt: off
@triton.jit
def _forward(
    logits, target, log_sum, ce, focal, probability, overlap, rows, num_seen, y_size, x_size, height, width,
    CE: tl.constexpr, NEL: tl.constexpr, MASKED: tl.constexpr, ALPHA: tl.constexpr, PIXELS: tl.constexpr,
    ROWS: tl.constexpr,
):
    # fmt: on
    tile, image, tiles = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    pixel = tile * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    label = tl.load(target + image * height * width + pixel, mask=inside, other=-1).to(tl.int32)
    y_corner, x_corner = _corner(pixel // width, y_size, height), _corner(pixel % width, x_size, width)
    counted = (label >= 0) & (label < num_seen) if MASKED else inside
    peak = tl.full((PIXELS,), float("-inf"), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    own, loss = total, total
    logits += image * rows * y_size * x_size
    for start in range(0, rows, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & inside[None, :]
        z = _interpolated(logits, row[:, None] * y_size * x_size, mask, y_corner, x_corner, x_size)
        hit = row[:, None] == label[None, :]
        if CE:
            known = tl.where((row < rows)[:, None], z, float("-inf"))
            new_peak = tl.maximum(peak, tl.max(known, axis=0))
            total = total * tl.exp(peak - new_peak) + tl.sum(tl.exp(known - new_peak[None, :]), axis=0)
            peak = new_peak
            own += tl.sum(tl.where(hit, z, 0.0), axis=0)
        if NEL:
            if start < num_seen:
                seen = mask & (row < num_seen)[:, None] & counted[None, :]
                p, per_pixel = _focal(z, hit, _softplus(z), ALPHA)
                loss += tl.sum(tl.where(seen, per_pixel, 0.0), axis=0)
                place = (image * tiles + tile) * num_seen + row
                tl.store(probability + place, tl.sum(tl.where(seen, p, 0.0), axis=1), mask=row < num_seen)
                tl.store(overlap + place, tl.sum(tl.where(seen & hit, p, 0.0), axis=1), mask=row < num_seen)
    if CE:
        value = peak + tl.log(total)
        tl.store(log_sum + image * height * width + pixel, value, mask=inside)
        tl.store(ce + image * tiles + tile, tl.sum(tl.where(label >= 0, value - own, 0.0), axis=0))
    if NEL:
        tl.store(focal + image * tiles + tile, tl.sum(loss, axis=0))


# fmt: off
@triton.jit
def _backward(
    logits, target, log_sum, up_ce, up_focal, up_miss, up_hit, result, rows, num_seen, y_size, x_size, height, width,
    SPAN_Y: tl.constexpr, SPAN_X: tl.constexpr, CE: tl.constexpr, NEL: tl.constexpr, MASKED: tl.constexpr,
    ALPHA: tl.constexpr, CELLS: tl.constexpr, ROWS: tl.constexpr,
):
    # fmt: on
    image = tl.program_id(2).to(tl.int64)
    cell, row = tl.program_id(0) * CELLS + tl.arange(0, CELLS), tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    y, x, valid, seen_row = cell // x_size, cell % x_size, cell < y_size * x_size, row < num_seen
    first_y, first_x = _first_pixel(y, y_size, height), _first_pixel(x, x_size, width)
    logits += image * rows * y_size * x_size
    ce, focal = tl.load(up_ce), tl.load(up_focal + image)
    miss = tl.load(up_miss + image * num_seen + row, mask=seen_row, other=0.0)[:, None]
    hits = tl.load(up_hit + image * num_seen + row, mask=seen_row, other=0.0)[:, None]
    sums = tl.zeros((ROWS, CELLS), tl.float32)
    for step in range(SPAN_Y * SPAN_X):
        pixel_y, pixel_x = first_y + step // SPAN_X, first_x + step % SPAN_X
        y_corner, x_corner = _corner(pixel_y, y_size, height), _corner(pixel_x, x_size, width)
        inside = valid & (pixel_y >= 0) & (pixel_y < height) & (pixel_x >= 0) & (pixel_x < width)
        share = tl.where(inside, _share(y_corner, y) * _share(x_corner, x), 0.0)
        pixel = image * height * width + pixel_y * width + pixel_x
        label = tl.load(target + pixel, mask=inside, other=-1).to(tl.int32)
        mask = (row < rows)[:, None] & inside[None, :]
        z = _interpolated(logits, row[:, None] * y_size * x_size, mask, y_corner, x_corner, x_size)
        hit = row[:, None] == label[None, :]
        value = tl.zeros((ROWS, CELLS), tl.float32)
        if CE:
            softmax = tl.exp(z - tl.load(log_sum + pixel, mask=inside, other=0.0)[None, :])
            value += tl.where((label >= 0)[None, :], ce * (softmax - hit.to(tl.float32)), 0.0)
        if NEL:
            counted = (label >= 0) & (label < num_seen) if MASKED else inside
            nel = _nel_gradient(z, hit, focal, miss, hits, ALPHA)
            value += tl.where(seen_row[:, None] & counted[None, :], nel, 0.0)
        sums += tl.where(mask, value * share[None, :], 0.0)
    place = (image * rows + row[:, None]) * y_size * x_size + cell[None, :]
    tl.store(result + place, sums, mask=(row < rows)[:, None] & valid[None, :])
