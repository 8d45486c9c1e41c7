"""Crowded synthetic scenes: many small things among many kinds of stuff, as in photographs.

Number of classes, areas, frequencies and the share of things are those of COCO-Stuff photographs
(`benchmarks/crowd_statistics.py`; docs/decisions/method.md#the-crowded-world).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from data_cache.datasets import scenes, textures
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
from data_cache.datasets.textures import polygon_mask
from data_cache.datasets.worlds import Scene, World

SIDE = 192
ABOVE = {
    "sky": scenes.STUFF["sky"],
    "fog": Stuff((0, 360), (0.0, 0.08), (0.5, 0.7), (64, 96, 0.06)),
    "clouds": Stuff((200, 230), (0.0, 0.12), (0.8, 1.0), (12, 24, 0.12)),
}
GROUND = {
    "sand": scenes.STUFF["sand"],
    "grass": scenes.STUFF["grass"],
    "water": scenes.STUFF["water"],
    "dirt": Stuff((12, 28), (0.45, 0.7), (0.25, 0.5), (2, 4, 0.16)),
    "snow": Stuff((190, 240), (0.0, 0.08), (0.88, 1.0), (1.5, 1.5, 0.05)),
    "road": scenes.STUFF["road"],
}
STANDING = {
    "house": Stuff((0, 18), (0.4, 0.65), (0.45, 0.75), (2, 9, 0.22)),
    "tree": Stuff((85, 140), (0.4, 0.8), (0.15, 0.38), (6, 6, 0.35)),
    "bush": Stuff((50, 85), (0.4, 0.7), (0.3, 0.55), (3, 3, 0.3)),
    "mountain": Stuff((215, 275), (0.12, 0.35), (0.35, 0.6), (24, 6, 0.16)),
    "fence": Stuff((25, 45), (0.25, 0.5), (0.5, 0.85), (96, 2.5, 0.3)),
    "rock": Stuff((0, 360), (0.0, 0.1), (0.4, 0.7), (9, 9, 0.28)),
    "hill": Stuff((90, 150), (0.2, 0.45), (0.45, 0.7), (10, 30, 0.1)),
}
STUFF: Mapping[str, Stuff] = {**ABOVE, **GROUND, **STANDING}
"""Stuff by where it is, each group in the order of its frequency."""
NEW_THINGS = {
    "tent": Thing(textures.bands, RED),
    "napkin": Thing(textures.checks, RED),
    "donut": Thing(textures.dots, YELLOW),
    "bus": Thing(textures.bands, YELLOW),
    "tie": Thing(textures.bands, GREEN),
    "blanket": Thing(textures.checks, GREEN),
    "umbrella": Thing(textures.dots, CYAN),
    "pillow": Thing(textures.checks, CYAN),
    "curtain": Thing(textures.stripes, BLUE),
    "cloth": Thing(textures.checks, BLUE),
    "kite": Thing(textures.stripes, PURPLE),
    "cake": Thing(textures.dots, PURPLE),
}
BY_FREQUENCY = (
    *("flag", "umbrella", "turtle", "bus", "tiger", "tent", "waffle", "rose"),
    *("frog", "curtain", "blanket", "dice", "kite", "shell", "napkin", "donut"),
    *("melon", "pillow", "quilt", "ladybug", "cloth", "tie", "towel", "cake"),
)
THINGS: Mapping[str, Thing] = {name: (scenes.THINGS | NEW_THINGS)[name] for name in BY_FREQUENCY}
"""Every pattern in every range of hues, in the order of frequency."""

MANY_ABOVE, MANY_GROUNDS = (0.55, 0.35, 0.1), (0.35, 0.25, 0.2, 0.12, 0.08)
MANY_STANDING, MANY_THINGS = (0.25, 0.17, 0.15, 0.13, 0.12, 0.1, 0.08), (0.1, 0.2, 0.22, 0.18, 0.14, 0.1, 0.06)
"""Probabilities of the number of classes in a scene: from 1, and from 0 for standing stuff."""
STUFF_TAIL, THING_TAIL = 1.6, 1.2
"""Exponents of Zipf's law: the frequency of a class is about proportional to rank ** -tail."""
RADIUS, ZOOM, SPREAD = 0.13, 0.6, 0.8
"""Median radius of a near thing as a share of the side, and the standard deviations of the logarithm of a scene's zoom
and of a thing's size."""
LARGEST = 0.4
"""Greatest radius of a thing as a share of the side."""


def draw(rng: np.random.Generator) -> Scene:
    """Draw what is above the horizon, grounds, what stands on them, things from far to near, lighting, and noise."""
    canvas, label = np.empty((SIDE, SIDE, 3)), np.empty((SIDE, SIDE), np.uint8)
    horizon = rng.uniform(0.25, 0.55) * SIDE
    for index, area in _stuff_areas(rng, horizon):
        canvas[area] = stuff_texture(rng, SIDE, list(STUFF.values())[index])[area]
        label[area] = index
    things = list(THINGS.values())
    for index, center, radius in _placed_things(rng, horizon):
        area = textures.outline(rng, SIDE, center, radius)
        paint_thing(rng, canvas, area, center, things[index], scale=float(np.clip(radius / 24, 0.45, 1.6)))
        label[area] = len(STUFF) + index
    for _ in range(rng.integers(0, 5)):
        label[textures.outline(rng, SIDE, rng.uniform(0, SIDE, 2), rng.uniform(0.03, 0.1) * SIDE)] = VOID
    return Scene(add_lighting_and_noise(rng, canvas), label)


def _draw_classes(
    rng: np.random.Generator, count: int, tail: float, probabilities: Sequence[float], least: int = 1
) -> list[int]:
    """The ranks of different classes of `count`, `least` or more; the first ones are the most frequent."""
    frequency = np.arange(1, count + 1) ** -tail
    number = least + rng.choice(len(probabilities), p=probabilities)
    return rng.choice(count, number, replace=False, p=frequency / frequency.sum()).tolist()


def _stuff_areas(rng: np.random.Generator, horizon: float) -> list[tuple[int, Bool[np.ndarray, "y x"]]]:
    """The ids of stuff classes and their areas in the order of painting."""
    below = _below(rng, np.full(33, horizon), 0.02 * SIDE)
    areas = []
    for layer, index in enumerate(_draw_classes(rng, len(ABOVE), STUFF_TAIL, MANY_ABOVE)):
        patches = [
            textures.outline(rng, SIDE, rng.uniform((0, 0), (horizon, SIDE)), rng.uniform(0.08, 0.22) * SIDE)
            for _ in range(rng.integers(1, 4) if layer else 0)
        ]
        areas.append((index, np.any(patches, axis=0) & ~below if layer else ~below))
    for layer, index in enumerate(_draw_classes(rng, len(GROUND), STUFF_TAIL, MANY_GROUNDS)):
        areas.append((len(ABOVE) + index, below & _wedge(rng, horizon) if layer else below))
    first = len(ABOVE) + len(GROUND)
    for index in _draw_classes(rng, len(STANDING), STUFF_TAIL, MANY_STANDING, least=0):
        areas.append((first + index, _standing(rng, horizon)))
    return areas


def _below(rng: np.random.Generator, line: Float[np.ndarray, "corner"], roughness: float) -> Bool[np.ndarray, "y x"]:
    """What is below a line from left to right, which is made uneven."""
    x = np.linspace(0, SIDE, len(line))
    line = line + roughness * np.sin(x / rng.uniform(4, 30) + rng.uniform(0, 2 * np.pi))
    return polygon_mask(SIDE, np.array([*zip(x, line, strict=True), (SIDE, SIDE), (0, SIDE)]))


def _wedge(rng: np.random.Generator, horizon: float) -> Bool[np.ndarray, "y x"]:
    """A ground that widens towards the viewer, such as a path, or a strip along the horizon."""
    if rng.random() < 0.35:
        end = horizon + rng.uniform(0.1, 0.5) * (SIDE - horizon)
        return ~_below(rng, np.full(33, end), 0.02 * SIDE)
    (far, near), widths = rng.uniform(-0.1, 1.1, 2) * SIDE, rng.uniform((0.02, 0.1), (0.15, 0.45)) * SIDE
    corners = [(far - widths[0], horizon - 5), (far + widths[0], horizon - 5)]
    return polygon_mask(SIDE, np.array([*corners, (near + widths[1], SIDE), (near - widths[1], SIDE)]))


def _standing(rng: np.random.Generator, horizon: float) -> Bool[np.ndarray, "y x"]:
    """What stands between a foot near the horizon and an uneven top, over a part of the width."""
    foot = horizon + rng.uniform(0, 0.25) * (SIDE - horizon)
    top = foot - rng.uniform(0.06, 0.3) * SIDE
    upper = _below(rng, np.full(33, top), rng.uniform(0, 0.06) * SIDE)
    left, width = rng.uniform(-0.2, 0.9) * SIDE, rng.uniform(0.12, 0.7) * SIDE
    area = upper.copy()
    area[max(0, round(foot)) :] = False
    area[:, : max(0, round(left))] = False
    area[:, max(0, round(left + width)) :] = False
    return area


def _placed_things(rng: np.random.Generator, horizon: float) -> list[tuple[int, Float[np.ndarray, "2"], float]]:
    """Class, center (y, x) and radius of each thing, from far to near. The nearer it stands, the larger it is."""
    zoom, placed = np.exp(ZOOM * rng.standard_normal()), []
    for index in _draw_classes(rng, len(THINGS), THING_TAIL, MANY_THINGS):
        size = RADIUS * SIDE * zoom * np.exp(SPREAD * rng.standard_normal())
        for _ in range(min(rng.geometric(0.5), 6)):
            near = rng.random()
            radius = min(size * (0.3 + 0.7 * near), LARGEST * SIDE)
            foot = horizon + near * (SIDE - horizon)
            placed.append((foot, index, np.array([foot - 0.8 * radius, rng.uniform(0, SIDE)]), radius))
    return [(index, center, radius) for _, index, center, radius in sorted(placed, key=lambda thing: thing[0])]


CROWD = World(
    name="crowd",
    stuff=tuple(STUFF),
    things=tuple(THINGS),
    draw=draw,
    splits={"train": 4000, "val": 200, "tune": 200, "captioned": 16000},
    visible_pixels=round(scenes.SCENES.visible_pixels / scenes.SIDE**2 * SIDE**2),  # the same share of the image
    stuff_named=0.33,
    thing_named=0.33,
)
