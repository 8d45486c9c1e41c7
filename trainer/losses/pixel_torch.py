"""The pixel sums on any device: logits are upsampled a few rows at a time, for as many images at once as fit."""

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from trainer.losses.pixel_terms import FOCAL_ALPHA, IGNORE, Statistics, Terms, Upstream

CHUNK = {"cpu": 2**20, "cuda": 2**26}
"""Logits upsampled at once: on a CPU as many as fit into its caches, on a GPU enough to keep it busy."""


def statistics(
    logits: Float[Tensor, "image row y x"], target: Int[Tensor, "image height width"], terms: Terms
) -> Statistics:
    """The forward pass."""
    images, seen = len(logits), terms.num_seen
    ce, focal = logits.new_zeros(images), logits.new_zeros(images)
    probability, overlap = logits.new_zeros(images, seen), logits.new_zeros(images, seen)
    for part, upsample in _image_chunks(logits, target):
        for rows in upsample.row_chunks():
            chunk = _Chunk(upsample(rows), target[part, rows], terms)
            if terms.ce:
                per_pixel = chunk.logits.log_softmax(dim=1).gather(1, chunk.row[:, None])[:, 0]
                ce[part] -= per_pixel.where(chunk.labelled, 0.0).sum(dim=(1, 2))
            if terms.nel:
                focal[part] += chunk.focal()
                probability[part] += chunk.weighted(chunk.probability).sum(dim=(2, 3))
                hits = chunk.target_probability.where(chunk.positive, 0.0).flatten(1)
                overlap[part] = overlap[part].scatter_add(1, chunk.seen_row.flatten(1), hits)
    # PyTorch computes a softmax faster than it subtracts a log-sum-exp, so none is kept
    return Statistics(logits.new_zeros(0), ce, focal, probability, overlap)


def gradient(
    logits: Float[Tensor, "image row y x"],
    target: Int[Tensor, "image height width"],
    _log_sum: Float[Tensor, "0"],
    terms: Terms,
    upstream: Upstream,
) -> Float[Tensor, "image row y x"]:
    """The backward pass."""
    result = torch.empty_like(logits)
    for part, upsample in _image_chunks(logits, target):
        for rows in upsample.row_chunks():
            chunk = _Chunk(upsample(rows), target[part, rows], terms)
            gradient = chunk.ce_gradient(upstream.ce) if terms.ce else torch.zeros_like(chunk.logits)
            if terms.nel:
                seen = chunk.nel_gradient(upstream.focal[part], upstream.miss[part], upstream.hit[part])
                gradient[:, : terms.num_seen] += seen
            upsample.add(rows, gradient)
        result[part] = upsample.gradient()
    return result


class _Chunk:
    """Upsampled logits of some rows of some images, and what both passes derive from them."""

    def __init__(
        self, logits: Float[Tensor, "image row height width"], target: Int[Tensor, "image height width"], terms: Terms
    ) -> None:
        self.logits, self.terms = logits, terms
        self.labelled = target != IGNORE
        self.row = target.clamp(min=0)
        if terms.nel:
            self.target_logit = logits.gather(1, self.row[:, None])[:, 0]
            self.positive = self.labelled & (target < terms.num_seen)
            self.seen_row = self.row.where(self.positive, 0)
            self.softplus = F.softplus(logits[:, : terms.num_seen])
            self.probability = (logits[:, : terms.num_seen] - self.softplus).exp()
            self.target_probability = self.at_target(self.probability)

    def at_target(self, values: Float[Tensor, "image seen height width"]) -> Float[Tensor, "image height width"]:
        """The value of each pixel's own seen class; of any class where it has none."""
        return values.gather(1, self.seen_row[:, None])[:, 0]

    def weighted(self, values: Float[Tensor, "image seen height width"]) -> Float[Tensor, "image seen height width"]:
        """The values that focal and dice count."""
        return values * self.positive[:, None] if self.terms.masked else values

    def focal(self) -> Float[Tensor, "image"]:
        """The focal loss of each image, summed over pixels and seen classes."""
        p, softplus, target_softplus = self.probability, self.softplus, self.at_target(self.softplus)
        as_negative = (1 - FOCAL_ALPHA) * self.target_probability.square() * target_softplus
        as_positive = FOCAL_ALPHA * (-2 * target_softplus).exp() * (target_softplus - self.target_logit)
        correction = (as_positive - as_negative).where(self.positive, 0.0).sum(dim=(1, 2))
        negatives = self.weighted((p * softplus).mul_(p)).sum(dim=(1, 2, 3))
        return (1 - FOCAL_ALPHA) * negatives + correction

    def ce_gradient(self, upstream: Float[Tensor, ""]) -> Float[Tensor, "image row height width"]:
        """The gradient of the cross-entropy: softmax minus one at the target."""
        scale = upstream * self.labelled
        gradient = self.logits.softmax(dim=1).mul_(scale[:, None])
        return gradient.scatter_add_(1, self.row[:, None], -scale[:, None])

    def nel_gradient(
        self,
        focal: Float[Tensor, "image"],
        miss: Float[Tensor, "image seen"],
        hit: Float[Tensor, "image seen"],
    ) -> Float[Tensor, "image seen height width"]:
        """The gradient of focal and dice."""
        p, q = self.probability, (-self.softplus).exp_()
        focal = focal[:, None, None]
        gradient = self._focal_slope(p, q, self.softplus) * ((1 - FOCAL_ALPHA) * focal[:, None])
        slope = q.mul_(p)  # of the sigmoid
        gradient.addcmul_(slope, miss[:, :, None, None])
        t, softplus = self.target_probability, self.at_target(self.softplus)
        t_slope, rest = self.at_target(slope), (-softplus).exp()
        own = miss.gather(1, self.seen_row.flatten(1)) - hit.gather(1, self.seen_row.flatten(1))
        positive = t_slope * own.view_as(t) - FOCAL_ALPHA * focal * self._focal_slope(
            rest, t, softplus - self.target_logit
        )
        at_target = positive.where(self.positive, self.at_target(gradient))
        return self.weighted(gradient.scatter_(1, self.seen_row[:, None], at_target[:, None]))

    @staticmethod
    def _focal_slope(p: Tensor, q: Tensor, softplus: Tensor) -> Tensor:
        """The derivative of p^2 softplus(z) by z, where p = sigmoid(z) and q = 1 - p."""
        return (q * softplus).mul_(2).add_(p).mul_(p).mul_(p)


class _Upsample:
    """Bilinear interpolation of the logits of some images, a few rows of pixels at a time, and its transpose."""

    def __init__(self, logits: Float[Tensor, "image row y x"], size: tuple[int, int], step: int) -> None:
        self.logits, self.height, self.step = logits, size[0], step
        # the columns by a product of matrices, which for a row of cells is faster than a resize
        cells = torch.eye(logits.shape[3], dtype=logits.dtype, device=logits.device)[None]
        self.columns = F.interpolate(cells, size[1], mode="linear", align_corners=False)[0]
        self.wide = logits if logits.shape[3] == size[1] else logits @ self.columns
        # the same source positions as in F.interpolate with align_corners=False
        source = (torch.arange(size[0], dtype=torch.float64) + 0.5) * logits.shape[2] / size[0] - 0.5
        source = source.clamp(min=0)
        self.above = source.long().clamp(max=logits.shape[2] - 1)
        self.weight = (source - self.above).to(logits)[:, None]

    @cached_property
    def sum(self) -> Float[Tensor, "image row y width"]:
        """The gradient of `wide`, added up; only the backward pass needs it."""
        return torch.zeros_like(self.wide)

    def row_chunks(self) -> Iterator[slice]:
        """Slices of rows of pixels; if they are interpolated, each lies between the same two rows of cells."""
        if self.logits.shape[2] == self.height:
            bounds = [*range(0, self.height, self.step), self.height]
        else:
            bounds = [0, *(1 + self.above.diff().nonzero()[:, 0]).tolist(), self.height]
        return (slice(start, stop) for start, stop in pairwise(bounds))

    def __call__(self, rows: slice) -> Float[Tensor, "image row height width"]:
        """The logits of some rows of pixels."""
        if self.logits.shape[2] == self.height:
            return self.wide[:, :, rows]
        above, below = self._between(rows)
        return self.wide[:, :, above, None].lerp(self.wide[:, :, below, None], self.weight[rows])

    def add(self, rows: slice, gradient: Float[Tensor, "image row height width"]) -> None:
        """Add the gradient of some rows of pixels."""
        if self.logits.shape[2] == self.height:
            self.sum[:, :, rows] += gradient
            return
        above, below = self._between(rows)
        of_below = (gradient * self.weight[rows]).sum(dim=2)
        self.sum[:, :, above] += gradient.sum(dim=2).sub_(of_below)
        self.sum[:, :, below] += of_below

    def gradient(self) -> Float[Tensor, "image row y x"]:
        """The gradient of the logits."""
        return self.sum if self.wide is self.logits else self.sum @ self.columns.T

    def _between(self, rows: slice) -> tuple[int, int]:
        above = int(self.above[rows.start])
        return above, min(above + 1, self.logits.shape[2] - 1)


def _image_chunks(logits: Tensor, target: Tensor) -> Iterator[tuple[slice, _Upsample]]:
    """As many images at once as fit into a chunk, at least one."""
    chunk, (height, width) = CHUNK.get(logits.device.type, CHUNK["cpu"]), target.shape[1:]
    pixels = height * width if logits.shape[2] == height else -(-height // logits.shape[2]) * width
    step = max(1, chunk // max(1, logits.shape[1] * pixels))
    rows = max(1, chunk // max(1, logits.shape[1] * width))
    for start in range(0, len(logits), step):
        yield slice(start, start + step), _Upsample(logits[start : start + step], (height, width), rows)
