"""Textures of synthetic scenes: patterns of things, grain of stuff, outlines, and colors."""

import colorsys
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

Field = Float[np.ndarray, "y x"]
Color = Float[np.ndarray, "3"]
Pattern = Callable[[np.random.Generator, Field, Field], Field]

PERIOD = (8.0, 12.0)
"""Pixels between stripes: about the patch size of a CLIP token, so that a single token is ambiguous."""
TILT = 0.35
"""Maximum rotation of a pattern in radians. A small CLIP takes much longer to learn patterns at any angle."""


def _phases(rng: np.random.Generator, y: Field, x: Field) -> tuple[Field, Field]:
    """Phases along two perpendicular, randomly tilted axes, 2 pi per period."""
    tilt, scale = rng.uniform(-TILT, TILT), 2 * np.pi / rng.uniform(*PERIOD)
    shift = rng.uniform(0, 2 * np.pi, 2)
    u = (x * np.cos(tilt) + y * np.sin(tilt)) * scale + shift[0]
    v = (y * np.cos(tilt) - x * np.sin(tilt)) * scale + shift[1]
    return u, v


def _ink(rng: np.random.Generator, wave: Field) -> Field:
    # a zero-mean wave becomes paper (0) and ink (1) with edges of a pixel or two, as through a lens; the amount of ink
    # varies, so that the mean color does not identify the pattern
    return np.clip(0.5 + 2 * (wave + rng.uniform(-0.3, 0.3)), 0, 1)


def stripes(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Vertical stripes."""
    return _ink(rng, np.sin(_phases(rng, y, x)[0]))


def bands(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Horizontal stripes."""
    return _ink(rng, np.sin(_phases(rng, y, x)[1]))


def checks(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """A checkerboard."""
    u, v = _phases(rng, y, x)
    return _ink(rng, 2 * np.sin(0.75 * u) * np.sin(0.75 * v))


def dots(rng: np.random.Generator, y: Field, x: Field) -> Field:
    """Round spots in rows."""
    u, v = _phases(rng, y, x)
    return _ink(rng, np.cos(u) + np.cos(v) - 0.3)


def grain(rng: np.random.Generator, side: int, height: float, width: float) -> Field:
    """Smooth noise with specks of about `height` x `width` pixels; its standard deviation is 1 before smoothing."""
    rows, columns = (max(2, round(side / length)) for length in (height, width))
    small = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
    return np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), np.float64)


def hsv(
    rng: np.random.Generator,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Color:
    """A random color in ranges of hue (degrees), saturation and value (0 to 1), as RGB from 0 to 1."""
    h, s, v = (rng.uniform(*bounds) for bounds in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h / 360 % 1, s, v))


def outline(
    rng: np.random.Generator, side: int, center: Float[np.ndarray, "2"], radius: float
) -> Bool[np.ndarray, "y x"]:
    """The mask of a polygon with 3 to 6 corners, or of a blob, around a center (y, x)."""
    if rng.random() < 0.5:
        angles = np.sort(rng.uniform(0, 2 * np.pi / 6, 6) + np.arange(6) * 2 * np.pi / 6)
        angles = rng.permutation(angles)[: rng.integers(3, 7)]
        angles.sort()
        reach = np.full(len(angles), 1.2)
    else:
        angles = np.arange(40) * (2 * np.pi / 40)
        order = np.arange(2, 6)[:, None]
        waves = np.cos(order * angles + rng.uniform(0, 2 * np.pi, (4, 1)))
        reach = 1 + (rng.uniform(0, 0.16, (4, 1)) * waves).sum(axis=0)
    y, x = center[0] + radius * reach * np.sin(angles), center[1] + radius * reach * np.cos(angles)
    return polygon_mask(side, np.stack([x, y], axis=1))


def polygon_mask(side: int, corners: Float[np.ndarray, "corner 2"]) -> Bool[np.ndarray, "y x"]:
    """The mask of a polygon of (x, y) corners in a square image."""
    mask = Image.new("1", (side, side))
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.asarray(mask)
