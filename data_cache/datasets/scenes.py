"""Synthetic scenes: one to four textured things on one or two kinds of textured stuff. The demo's world."""

import numpy as np
from jaxtyping import Bool

from data_cache.datasets import textures
from data_cache.datasets.base import VOID
from data_cache.datasets.painting import (
    BLUE,
    CYAN,
    GREEN,
    PURPLE,
    RED,
    YELLOW,
    Stuff,
    Thing,
    add_lighting_and_noise,
    paint_thing,
    stuff_texture,
)
from data_cache.datasets.worlds import Scene, World

SIDE = 128
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


def draw(rng: np.random.Generator) -> Scene:
    """Draw one or two stuff classes, one to four different things that may overlap, lighting, and noise."""
    canvas, label = np.empty((SIDE, SIDE, 3)), np.empty((SIDE, SIDE), np.uint8)
    stuff, things = list(STUFF.values()), list(THINGS.values())
    for layer, chosen in enumerate(sorted(rng.choice(len(stuff), 1 + int(rng.random() < 0.7), replace=False))):
        area = _below_horizon(rng) if layer else np.ones((SIDE, SIDE), bool)
        canvas[area] = stuff_texture(rng, SIDE, stuff[chosen])[area]
        label[area] = chosen
    for chosen in rng.choice(len(things), rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.3, 0.1]), replace=False):
        center = rng.uniform(0.12 * SIDE, 0.88 * SIDE, 2)
        area = textures.outline(rng, SIDE, center, rng.uniform(0.15, 0.3) * SIDE)
        paint_thing(rng, canvas, area, center, things[chosen])
        label[area] = len(stuff) + chosen
    for _ in range(rng.integers(0, 3)):
        center = rng.uniform(0, SIDE, 2)
        label[textures.outline(rng, SIDE, center, rng.uniform(0.03, 0.08) * SIDE)] = VOID
    return Scene(add_lighting_and_noise(rng, canvas), label)


def _below_horizon(rng: np.random.Generator) -> Bool[np.ndarray, "y x"]:
    x = np.linspace(0, SIDE, 33)
    line = rng.uniform(0.35, 0.65) * SIDE + rng.uniform(-0.3, 0.3) * (x - SIDE / 2)
    line += rng.uniform(0, 8) * np.sin(x / rng.uniform(8, 30) + rng.uniform(0, 2 * np.pi))
    return textures.polygon_mask(SIDE, np.array([*zip(x, line, strict=True), (SIDE, SIDE), (0, SIDE)]))


SCENES = World(
    name="scenes",
    stuff=tuple(STUFF),
    things=tuple(THINGS),
    draw=draw,
    # for training, evaluation, choosing settings, and training a CLIP on captions
    splits={"train": 4000, "val": 200, "tune": 200, "captioned": 16000},
    visible_pixels=100,
    stuff_named=0.5,
    thing_named=0.8,
)
