"""Colour changes that move no pixel: the only augmentation that a cached teacher allows on top of its views."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F

CHANCE = 0.5
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 0.1


def distort(image: UInt8[Tensor, "3 height width"], rng: np.random.Generator) -> UInt8[Tensor, "3 height width"]:
    """An RGB image with brightness, contrast, saturation and hue changed, each at random.

    The ranges are those of mmsegmentation's photometric distortion: brightness shifted by up to 32 of 255, contrast
    and saturation scaled by 0.5 to 1.5, hue shifted by up to a tenth of the circle; contrast comes first or last.
    """
    brightness, hue = rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(-HUE, HUE)
    contrast, saturation = rng.uniform(*CONTRAST), rng.uniform(*SATURATION)
    bright, contrasted, saturated, shifted, early = rng.random(5) < CHANCE
    if bright:
        image = _rounded(image.float() + brightness)
    if contrasted and early:
        image = _rounded(image.float() * contrast)
    if saturated:
        image = F.adjust_saturation(image, saturation)
    if shifted:
        image = F.adjust_hue(image, hue)
    if contrasted and not early:
        image = _rounded(image.float() * contrast)
    return image


def _rounded(image: Float[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
    return image.round().clamp(0, 255).to(torch.uint8)
