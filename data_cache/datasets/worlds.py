"""Synthetic datasets: a world draws scenes with dense labels on demand. They need no files and no network."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data_cache.datasets.base import VOID, DatasetSpec, Digest, Sample
from data_cache.datasets.decode import count_values


class Scene(NamedTuple):
    """An image and its label map."""

    image: UInt8[np.ndarray, "height width 3"]
    label: UInt8[np.ndarray, "height width"]


@dataclass(frozen=True)
class World:
    """Classes and a function that draws scenes of them.

    Args:
        name: Name of the dataset.
        stuff: Names of the stuff classes, which have the first class ids.
        things: Names of the thing classes.
        draw: Draws a scene.
        splits: Number of scenes per split.
        visible_pixels: The number of pixels from which a class counts as visible in a scene.
        stuff_named: Probability that a caption names a visible stuff class.
        thing_named: Probability that a caption names a visible thing class.

    """

    name: str
    stuff: tuple[str, ...]
    things: tuple[str, ...]
    draw: Callable[[np.random.Generator], Scene]
    splits: Mapping[str, int] = field(hash=False)
    visible_pixels: int
    stuff_named: float
    thing_named: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Stuff first, then things."""
        return (*self.stuff, *self.things)

    @property
    def spec(self) -> DatasetSpec:
        """Its entry in the registry."""
        return DatasetSpec(lambda _, split: Scenes(self, split, self.splits[split]), splits=tuple(self.splits))

    def visible_classes(self, label: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "class"]:
        """Whether each class is visible in a scene."""
        return np.bincount(label.ravel(), minlength=VOID + 1)[: len(self.classes)] >= self.visible_pixels


@dataclass(frozen=True)
class Scenes:
    """A dataset that is rendered on demand, with the same result every time and on every machine."""

    world: World
    split: str
    count: int
    seed: int = 0
    cached: bool = True
    root: None = field(default=None, init=False)
    notes: tuple[str, ...] = field(default=(), init=False)

    @property
    def name(self) -> str:
        """Name of the world."""
        return self.world.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Stuff first, then things."""
        return self.world.classes

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
        return (_render_cached if self.cached else _render)(self.world, self.seed, self.split, i)

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


@lru_cache(maxsize=4096)  # at most 576 MiB per process: rendering is the slowest part of a training item
def _render_cached(world: World, seed: int, split: str, i: int) -> Scene:
    return _render(world, seed, split, i)


@lru_cache(maxsize=32)
def _render(world: World, seed: int, split: str, i: int) -> Scene:
    scene = world.draw(np.random.default_rng((seed, *split.encode(), i)))
    for array in scene:
        array.flags.writeable = False
    return scene
