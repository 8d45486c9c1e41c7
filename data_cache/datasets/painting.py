"""Paints synthetic scenes: things by pattern and hue, stuff by color and grain, then lighting and noise."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_cache.datasets import textures
from data_cache.datasets.textures import Pattern

Range = tuple[float, float]
RED, YELLOW, GREEN = (-28.0, 20.0), (24.0, 70.0), (76.0, 146.0)
CYAN, BLUE, PURPLE = (152.0, 196.0), (202.0, 258.0), (264.0, 326.0)


class Thing(NamedTuple):
    """The appearance of a thing class: others share its pattern or its range of hues, but not both."""

    pattern: Pattern
    hue: Range


class Stuff(NamedTuple):
    """The appearance of a stuff class: its color, and the height, width and strength of its grain."""

    hue: Range
    saturation: Range
    value: Range
    grain: tuple[float, float, float]


def stuff_texture(rng: np.random.Generator, side: int, stuff: Stuff) -> Float[np.ndarray, "y x 3"]:
    """A square image of a stuff class."""
    color = textures.hsv(rng, stuff.hue, stuff.saturation, stuff.value)
    height, width, strength = stuff.grain
    brightness = 1 + strength * textures.grain(rng, side, height, width)
    return color * brightness[..., None]


def paint_thing(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "y x 3"],
    area: Bool[np.ndarray, "y x"],
    center: Float[np.ndarray, "2"],
    thing: Thing,
    scale: float = 1.0,
) -> None:
    """Paint a thing with center (y, x) over an area of the canvas; its pattern is enlarged by `scale`."""
    y, x = np.nonzero(area)
    ink = thing.pattern(rng, (y - center[0]) / scale, (x - center[1]) / scale)[:, None]
    paper = textures.hsv(rng, (0, 360), (0.0, 0.25), ((0.75, 1.0), (0.08, 0.3))[rng.integers(2)])
    canvas[area] = ink * textures.hsv(rng, thing.hue, (0.5, 0.95), (0.45, 0.95)) + (1 - ink) * paper


def add_lighting_and_noise(rng: np.random.Generator, canvas: Float[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Add a brightness gradient and sensor noise."""
    slope = rng.uniform(-0.2, 0.2, 2)
    along = np.linspace(-1, 1, len(canvas))
    light = 1 + slope[0] * along[:, None, None] + slope[1] * along[:, None]
    noise = rng.normal(0, rng.uniform(0.02, 0.07), canvas.shape)
    return (255 * np.clip(canvas * light + noise, 0, 1)).round().astype(np.uint8)
