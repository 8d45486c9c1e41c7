"""Photometric distortion, the only augmentation that a cached teacher allows on top of its views."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F

PROBABILITY = 0.5
BRIGHTNESS, CONTRAST, SATURATION, HUE = 32, (0.5, 1.5), (0.5, 1.5), 0.1


def distort(image: UInt8[Tensor, "3 height width"], rng: np.random.Generator) -> UInt8[Tensor, "3 height width"]:
    """Change brightness, contrast, saturation and hue of an RGB image at random. No pixel moves.

    As in mmsegmentation's PhotoMetricDistortion, brightness is shifted by up to 32 of 255, contrast and saturation are
    scaled by 0.5 to 1.5, hue is shifted by up to a tenth of the circle, and contrast changes before saturation or last.
    """
    brightness, hue = rng.uniform(-BRIGHTNESS, BRIGHTNESS), rng.uniform(-HUE, HUE)
    contrast, saturation = rng.uniform(*CONTRAST), rng.uniform(*SATURATION)
    change_brightness, change_contrast, change_saturation, change_hue, contrast_first = rng.random(5) < PROBABILITY
    if change_brightness:
        image = _rounded(image.float() + brightness)
    if change_contrast and contrast_first:
        image = _rounded(image.float() * contrast)
    if change_saturation:
        image = F.adjust_saturation(image, saturation)
    if change_hue:
        image = F.adjust_hue(image, hue)
    if change_contrast and not contrast_first:
        image = _rounded(image.float() * contrast)
    return image


def _rounded(image: Float[Tensor, "3 height width"]) -> UInt8[Tensor, "3 height width"]:
    return image.round().clamp(0, 255).to(torch.uint8)
