"""What the pixel sums are computed from, and what their two passes hand over."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

IGNORE = -1
"""Target of an unlabelled pixel. Targets 0..K-1 are seen classes, K+j is pseudo label j of the image.

In transductive training, K includes the unseen classes, whose targets are pseudo labels with their names.
"""
FOCAL_ALPHA = 0.25


class Terms(NamedTuple):
    """Which terms are computed, and whether focal and dice skip the pixels without a seen label (`nel_ignore`)."""

    num_seen: int
    ce: bool
    nel: bool
    masked: bool


class Statistics(NamedTuple):
    """What the forward pass computes: sums per image, and each pixel's log-sum-exp if the backward pass needs it."""

    log_sum: Float[Tensor, "image height width"] | Float[Tensor, "0"]
    ce: Float[Tensor, "image"]
    focal: Float[Tensor, "image"]
    probability: Float[Tensor, "image seen"]
    """Of each seen class, summed over the pixels that count."""
    overlap: Float[Tensor, "image seen"]
    """The same, summed over the pixels of the class itself."""


class Upstream(NamedTuple):
    """What the gradient of each pixel is multiplied with."""

    ce: Float[Tensor, ""]
    focal: Float[Tensor, "image"]
    miss: Float[Tensor, "image seen"]
    """By how much the dice loss rises with the probability of a seen class at any pixel."""
    hit: Float[Tensor, "image seen"]
    """By how much it falls with that at a pixel of the class itself."""
