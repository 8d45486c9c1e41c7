"""Drawn scenes: textured things on textured stuff, with dense labels. They need no file and no network."""

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
from data_cache.datasets.textures import Pattern

SIDE = 128
SPLITS = {"train": 4000, "val": 200, "tune": 200, "captioned": 16000}
"""Scenes of each split: to train on, to evaluate on, to choose settings on, and to train a CLIP with captions."""

Range = tuple[float, float]
RED, YELLOW, GREEN = (-28.0, 20.0), (24.0, 70.0), (76.0, 146.0)
CYAN, BLUE, PURPLE = (152.0, 196.0), (202.0, 258.0), (264.0, 326.0)


class Thing(NamedTuple):
    """How a thing looks: other things share its pattern or the hues of its ink, but not both."""

    pattern: Pattern
    hue: Range


class Stuff(NamedTuple):
    """How a ground looks: its colour, and the height, width and strength of its grain."""

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
"""A class with fewer visible pixels does not count as being in a scene."""


class Scene(NamedTuple):
    """An image and the class of each of its pixels."""

    image: UInt8[np.ndarray, "height width 3"]
    label: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class Scenes:
    """A dataset that is drawn on demand: the same scene every time, on every machine."""

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
        """Return the scene's name: there is no file."""
        return Path(self.ids[i])

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Return the image."""
        return self.load(i).image

    def label(self, i: int) -> UInt8[np.ndarray, "height width"]:
        """Return class ids, 255 where nothing is annotated."""
        return self.load(i).label

    def load(self, i: int) -> Scene:
        """Draw the scene, or take it from memory; its arrays are read-only."""
        return (_cached if self.cached else _drawn)(self.seed, self.split, i)

    def digest(self, i: int) -> Digest:
        """Return the SHA-256 of the image's and of the label map's pixels."""
        image, label = self.load(i)
        return Digest(*(hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in (image, label)))

    def sample(self, i: int) -> Sample:
        """Return what `load` and `digest` return."""
        return Sample(*self.load(i), self.digest(i))

    def subset(self, indices: Sequence[int]) -> "Scenes":
        """Return the dataset of the first scenes; no cache holds others."""
        assert list(indices) == list(range(len(indices)))
        return replace(self, count=len(indices))

    def uncached(self) -> "Scenes":
        """Return these scenes without a memory, but for the last few: a digest follows its image."""
        return replace(self, cached=False)


SPEC = DatasetSpec(lambda _, split: Scenes(split, SPLITS[split]), splits=tuple(SPLITS))


@lru_cache(maxsize=4096)  # at most 256 MiB per process: drawing takes longer than all else that a training item needs
def _cached(seed: int, split: str, i: int) -> Scene:
    return _drawn(seed, split, i)


@lru_cache(maxsize=32)
def _drawn(seed: int, split: str, i: int) -> Scene:
    scene = draw(np.random.default_rng((seed, *split.encode(), i)))
    for array in scene:
        array.flags.writeable = False
    return scene


def draw(rng: np.random.Generator) -> Scene:
    """Draw one or two grounds, one to four things of different classes that may overlap, light, and noise."""
    canvas, label = np.empty((SIDE, SIDE, 3)), np.empty((SIDE, SIDE), np.uint8)
    names = list(STUFF)
    grounds = sorted(rng.choice(len(names), 1 + int(rng.random() < 0.7), replace=False))
    for place, ground in enumerate(grounds):
        area = _below_horizon(rng) if place else np.ones((SIDE, SIDE), bool)
        canvas[area] = _ground(rng, STUFF[names[ground]])[area]
        label[area] = ground
    looks = list(THINGS.values())
    for chosen in rng.choice(len(looks), rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]), replace=False):
        centre = rng.uniform(0.12 * SIDE, 0.88 * SIDE, 2)
        area = textures.outline(rng, SIDE, centre, rng.uniform(0.15, 0.3) * SIDE)
        _paint(rng, canvas, area, centre, looks[chosen])
        label[area] = len(names) + chosen
    for _ in range(rng.integers(0, 3)):
        centre = rng.uniform(0, SIDE, 2)
        label[textures.outline(rng, SIDE, centre, rng.uniform(0.03, 0.08) * SIDE)] = VOID
    return Scene(_develop(rng, canvas), label)


def visible(label: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "class"]:
    """Which classes are visible enough to be named."""
    return np.bincount(label.ravel(), minlength=VOID + 1)[: len(STUFF) + len(THINGS)] >= VISIBLE_PIXELS


def _below_horizon(rng: np.random.Generator) -> Bool[np.ndarray, "y x"]:
    x = np.linspace(0, SIDE, 33)
    line = rng.uniform(0.35, 0.65) * SIDE + rng.uniform(-0.3, 0.3) * (x - SIDE / 2)
    line += rng.uniform(0, 8) * np.sin(x / rng.uniform(8, 30) + rng.uniform(0, 2 * np.pi))
    return textures.inside(SIDE, np.array([*zip(x, line, strict=True), (SIDE, SIDE), (0, SIDE)]))


def _ground(rng: np.random.Generator, stuff: Stuff) -> Float[np.ndarray, "y x 3"]:
    base = textures.hsv(rng, stuff.hue, stuff.saturation, stuff.value)
    height, width, strength = stuff.grain
    light = 1 + strength * textures.grain(rng, SIDE, height, width)
    return base * light[..., None]


def _paint(
    rng: np.random.Generator,
    canvas: Float[np.ndarray, "y x 3"],
    area: Bool[np.ndarray, "y x"],
    centre: Float[np.ndarray, "2"],
    thing: Thing,
) -> None:
    y, x = np.nonzero(area)
    ink = thing.pattern(rng, y - centre[0], x - centre[1])[:, None]
    paper = textures.hsv(rng, (0, 360), (0.0, 0.25), ((0.75, 1.0), (0.08, 0.3))[rng.integers(2)])
    canvas[area] = ink * textures.hsv(rng, thing.hue, (0.5, 0.95), (0.45, 0.95)) + (1 - ink) * paper


def _develop(rng: np.random.Generator, canvas: Float[np.ndarray, "y x 3"]) -> UInt8[np.ndarray, "y x 3"]:
    """Light that falls off to one side, and a sensor's noise."""
    slope = rng.uniform(-0.2, 0.2, 2)
    along = np.linspace(-1, 1, SIDE)
    light = 1 + slope[0] * along[:, None, None] + slope[1] * along[:, None]
    noise = rng.normal(0, rng.uniform(0.02, 0.07), canvas.shape)
    return (255 * np.clip(canvas * light + noise, 0, 1)).round().astype(np.uint8)
