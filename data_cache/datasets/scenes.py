"""Synthetic scenes: textured things on textured stuff, with dense labels. They need no files and no network."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_cache.datasets import textures
from data_cache.datasets.base import VOID, DatasetSpec, Digest, Sample
from data_cache.datasets.decode import count_values
from data_cache.datasets.textures import Pattern

SIDE = 128
SPLITS = {"train": 4000, "val": 200, "tune": 200, "captioned": 16000}
"""Number of scenes per split: for training, evaluation, choosing settings, and training a CLIP on captions."""

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


STUFF = {
    "sky": Stuff((195, 225), (0.1, 0.5), (0.75, 1.0), (40, 60, 0.05)),
    "water": Stuff((180, 230), (0.4, 0.8), (0.4, 0.8), (2.5, 14, 0.12)),
    "grass": Stuff((80, 140), (0.4, 0.8), (0.35, 0.7), (5, 1.5, 0.14)),
    "sand": Stuff((28, 50), (0.25, 0.5), (0.6, 0.9), (1, 1, 0.08)),
    "road": Stuff((0, 360), (0.0, 0.08), (0.3, 0.65), (2.5, 2.5, 0.09)),
}
THINGS = {
    "flag": Thing(textures.stripes, RED),
    "ladybug": Thing(textures.dots, RED),
    "tiger": Thing(textures.stripes, YELLOW),
    "waffle": Thing(textures.checks, YELLOW),
    "frog": Thing(textures.dots, GREEN),
    "melon": Thing(textures.stripes, GREEN),
    "towel": Thing(textures.stripes, CYAN),
    "turtle": Thing(textures.bands, CYAN),
    "dice": Thing(textures.dots, BLUE),
    "shell": Thing(textures.bands, BLUE),
    "quilt": Thing(textures.checks, PURPLE),
    "rose": Thing(textures.bands, PURPLE),
}
VISIBLE_PIXELS = 100
"""The number of pixels from which a class counts as visible in a scene."""


class Scene(NamedTuple):
    """An image and its label map."""

    image: UInt8[np.ndarray, "height width 3"]
    label: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Scenes:
    """A dataset that is rendered on demand, with the same result every time and on every machine."""

    split: str
    count: int
    seed: int = 0
    cached: bool = True
    name: str = field(default="scenes", init=False)
    root: None = field(default=None, init=False)
    notes: tuple[str, ...] = field(default=(), init=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """Stuff first, then things."""
        return (*STUFF, *THINGS)

    @cached_property
    def ids(self) -> list[str]:
        """Split and number."""
        return [f"{self.split}/{i:06}" for i in range(self.count)]

    def __len__(self) -> int:
        return self.count

    def has_label(self, i: int) -> bool:
        """Every scene has labels."""
        return True

    def path(self, i: int) -> Path:
        """The scene's id: it has no file."""
        return Path(self.ids[i])

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """The image."""
        return self.load(i).image

    def label(self, i: int) -> UInt8[np.ndarray, "height width"]:
        """Class ids, 255 for void."""
        return self.load(i).label

    def load(self, i: int) -> Scene:
        """Render the scene or get it from the in-memory cache; its arrays are read-only."""
        return (_render_cached if self.cached else _render)(self.seed, self.split, i)

    def digest(self, i: int) -> Digest:
        """SHA-256 of the pixels of the image and of the label map."""
        image, label = self.load(i)
        return Digest(*(hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in (image, label)))

    def sample(self, i: int) -> Sample:
        """The results of `load` and `digest`."""
        image, label = self.load(i)
        return Sample(image, label, self.digest(i), count_values(label))

    def subset(self, indices: Sequence[int]) -> "Scenes":
        """The dataset of the first scenes; no caller needs another subset."""
        assert list(indices) == list(range(len(indices)))
        return replace(self, count=len(indices))

    def uncached(self) -> "Scenes":
        """The dataset with only the last few scenes in memory, since a digest is read right after its image."""
        return replace(self, cached=False)


SPEC = DatasetSpec(lambda _, split: Scenes(split, SPLITS[split]), splits=tuple(SPLITS))


@lru_cache(maxsize=4096)  # at most 256 MiB per process: rendering is the slowest part of a training item
def _render_cached(seed: int, split: str, i: int) -> Scene:
    return _render(seed, split, i)


@lru_cache(maxsize=32)
def _render(seed: int, split: str, i: int) -> Scene:
    scene = draw(np.random.default_rng((seed, *split.encode(), i)))
    for array in scene:
        array.flags.writeable = False
    return scene


def draw(rng: np.random.Generator) -> Scene:
    """Draw one or two stuff classes, one to four different things that may overlap, lighting, and noise."""
    canvas, label = np.empty((SIDE, SIDE, 3)), np.empty((SIDE, SIDE), np.uint8)
    stuff, things = list(STUFF.values()), list(THINGS.values())
    for layer, chosen in enumerate(sorted(rng.choice(len(stuff), 1 + int(rng.random() < 0.7), replace=False))):
        area = _below_horizon(rng) if layer else np.ones((SIDE, SIDE), bool)
        canvas[area] = _stuff_texture(rng, stuff[chosen])[area]
        label[area] = chosen
    for chosen in rng.choice(len(things), rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]), replace=False):
        center = rng.uniform(0.12 * SIDE, 0.88 * SIDE, 2)
        area = textures.outline(rng, SIDE, center, rng.uniform(0.15, 0.3) * SIDE)
        _paint(rng, canvas, area, center, things[chosen])
        label[area] = len(stuff) + chosen
    for _ in range(rng.integers(0, 3)):
        center = rng.uniform(0, SIDE, 2)
        label[textures.outline(rng, SIDE, center, rng.uniform(0.03, 0.08) * SIDE)] = VOID
    return Scene(_add_lighting_and_noise(rng, canvas), label)


def visible_classes(label: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "class"]:
    """Whether each class is visible in a scene."""
    return np.bincount(label.ravel(), minlength=VOID + 1)[: len(STUFF) + len(THINGS)] >= VISIBLE_PIXELS


def _below_horizon(rng: np.random.Generator) -> Bool[np.ndarray, "y x"]:
    x = np.linspace(0, SIDE, 33)
    line = rng.uniform(0.35, 0.65) * SIDE + rng.uniform(-0.3, 0.3) * (x - SIDE / 2)
    line += rng.uniform(0, 8) * np.sin(x / rng.uniform(8, 30) + rng.uniform(0, 2 * np.pi))
    return textures.polygon_mask(SIDE, np.array([*zip(x, line, strict=True), (SIDE, SIDE), (0, SIDE)]))


def _stuff_texture(rng: np.random.Generator, stuff: Stuff) -> Float[np.ndarray, "y x 3"]:
    color = textures.hsv(rng, stuff.hue, stuff.saturation, stuff.value)
    height, width, strength = stuff.grain
    brightness = 1 + strength * textures.grain(rng, SIDE, height, width)
    return color * brightness[..., None]


def _paint(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "y x 3"],
    area: Bool[np.ndarray, "y x"],
    center: Float[np.ndarray, "2"],
    thing: Thing,
) -> None:
    y, x = np.nonzero(area)
    ink = thing.pattern(rng, y - center[0], x - center[1])[:, None]
    paper = textures.hsv(rng, (0, 360), (0.0, 0.25), ((0.75, 1.0), (0.08, 0.3))[rng.integers(2)])
    canvas[area] = ink * textures.hsv(rng, thing.hue, (0.5, 0.95), (0.45, 0.95)) + (1 - ink) * paper


def _add_lighting_and_noise(rng: np.random.Generator, canvas: Float[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Add a brightness gradient and sensor noise."""
    slope = rng.uniform(-0.2, 0.2, 2)
    along = np.linspace(-1, 1, SIDE)
    light = 1 + slope[0] * along[:, None, None] + slope[1] * along[:, None]
    noise = rng.normal(0, rng.uniform(0.02, 0.07), canvas.shape)
    return (255 * np.clip(canvas * light + noise, 0, 1)).round().astype(np.uint8)
