"""Web-like captions of synthetic scenes: they name a random subset of the visible classes in varying words."""

import numpy as np
from jaxtyping import UInt8

from data_cache.datasets.worlds import World

OPENINGS = ("", "", "a photo of ", "a photo of ", "a picture of ", "there is ", "this is ", "look: ")
ENDINGS = ("", "", "", ".", ".", " in the scene.", " on a good day")


def caption(rng: np.random.Generator, world: World, label: UInt8[np.ndarray, "height width"]) -> str:
    """A random caption with the names of at least one visible class."""
    visible = np.flatnonzero(world.visible_classes(label)).tolist()
    named = (world.stuff_named, world.thing_named)
    chosen = [i for i in visible if rng.random() < named[i >= len(world.stuff)]]
    chosen = chosen or [visible[rng.integers(len(visible))]]
    rng.shuffle(chosen)
    nouns = [_noun(rng, world, i, float((label == i).mean())) for i in chosen]
    opening, ending = OPENINGS[rng.integers(len(OPENINGS))], ENDINGS[rng.integers(len(ENDINGS))]
    return f"{opening}{(' and ', ', ', ' with ')[rng.integers(3)].join(nouns)}{ending}"


def _noun(rng: np.random.Generator, world: World, index: int, share: float) -> str:
    size = ""
    if index >= len(world.stuff) and rng.random() < 0.25:
        size = "small " if share < 0.04 else "large " if share > 0.1 else "medium "
    return f"{('a ', 'a ', 'the ', 'one ', '')[rng.integers(5)]}{size}{world.classes[index]}"
