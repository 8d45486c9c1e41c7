"""Chooses the colors of all published class names: `python docs/class_colors.py` writes viewer/class_colors.json.

Simulated annealing on a grid of sRGB colors. The distance of two colors is that of `viewer.color_vision`, in the worst
case of four kinds of color vision. The larger a list, the smaller the distance that its classes can have (`SPACING`).
Classes that no list has in common are only kept apart as those of the largest list. Names in `NATURAL` stay near the
color that people expect. It takes a minute.
"""

import json
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.class_list import class_lists
from data_cache.splits import meaning
from data_cache.system.atomic import atomic_write
from viewer.class_colors import ALIASES, COLORS_FILE, known_key, squeezed
from viewer.color_vision import distance, oklab
from viewer.palette import BLANK, HATCH

SPACING = {"voc": 0.15, "scenes": 0.13, "camvid": 0.15, "context": 0.07, "coco": 0.031, "crowd": 0.031}
NATURAL = {
    "sky": "7cb7f2", "clouds": "c3d3ea", "fog": "c8c8d6", "sea": "0b6a8f", "water": "2aa0b4", "river": "148a8c",
    "waterdrops": "6fd0e0", "grass": "6fbf3a", "playingfield": "9bd36a", "tree": "1d6b2e", "bush": "3a8f4c",
    "leaves": "4f9a28", "plant": "2f7f3f", "potted plant": "2f9a5f", "moss": "7b8a28", "sand": "e6d08e",
    "dirt": "8a6a45", "mud": "5c4632", "ground": "a88a62", "road": "6c6c74", "sidewalk": "a79aa8", "rock": "8a8278",
    "stone": "9a948c", "gravel": "7f766e", "mountain": "7a6a5a", "hill": "8a9a50", "snow": "f6f9ff",
    "wood": "a8743c", "wall-brick": "a8502f", "person": "e02d3c", "car": "1c3fa0", "banana": "f7d93b",
    "orange": "ff8c1a", "carrot": "f27a2a", "apple": "c8202a", "broccoli": "2f8f3f", "fire hydrant": "d81818",
    "stop sign": "b01020", "tiger": "f08a1e", "frog": "4fc030", "rose": "d8205a", "ladybug": "c01818",
    "flower": "f07ab8", "elephant": "84848c", "bear": "5a3a22", "horse": "8a4a22", "pizza": "e8b04a",
    "building": "b98a6a", "sheep": "efe6d2",
}  # fmt: skip
RADIUS = 0.05
"""How far in OKLab a color may be from its natural one."""
POWER, STEPS, HEAT = 12, 600_000, 1.5


def main() -> None:
    """Choose the colors, write them and print the least distance in each list."""
    names = published_names()
    grid = np.array(list(product(range(0, 256, 15), repeat=3)), np.uint8)
    seen = oklab(grid)
    lightness = seen[:, 0, 0]
    free = distance(seen[:, None], oklab(np.stack([BLANK, HATCH]))).min(axis=1) >= 0.05
    allowed = [_allowed(name, seen, free & (lightness > 0.28) & (lightness < 0.97), free) for name in names]
    chosen = anneal(seen, allowed, targets(names), np.random.default_rng(0))
    colors = {name: "#" + bytes(grid[index]).hex() for name, index in zip(names, chosen, strict=True)}
    with atomic_write(COLORS_FILE) as draft:
        draft.write_text(json.dumps(colors, indent=0) + "\n", encoding="utf-8")


def published_names() -> list[str]:
    """One name per color. Synonyms share one, unless a list has several of them."""
    found: dict[str, str] = {}
    for published in class_lists().values():
        shared = {name: ALIASES.get(name, meaning(name)) for name in published.classes}
        count = Counter(shared.values())
        for name, common in shared.items():
            own = name if count[common] > 1 else common
            found.setdefault(squeezed(own), own)
    return [found[key] for key in sorted(found)]


def targets(names: list[str]) -> Float[np.ndarray, "name name"]:
    """The distance that each pair of names should have."""
    place = {squeezed(name): index for index, name in enumerate(names)}
    target = np.full((len(names), len(names)), SPACING["coco"])
    for name, published in class_lists().items():
        keys = [known_key(each, place) for each in published.classes]
        members = [place[key] for key in keys if key]
        block = np.ix_(members, members)
        target[block] = np.maximum(target[block], SPACING[name])
    np.fill_diagonal(target, 0)
    return target


def _allowed(
    name: str,
    seen: Float[np.ndarray, "color vision 3"],
    usual: Bool[np.ndarray, "color"],
    free: Bool[np.ndarray, "color"],
) -> Int[np.ndarray, "choice"]:
    color = next((color for other, color in NATURAL.items() if squeezed(other) == squeezed(name)), None)
    if color is None:
        return np.flatnonzero(usual)
    natural = oklab(np.frombuffer(bytes.fromhex(color), np.uint8)[None])
    return np.flatnonzero(free & (np.linalg.norm(seen[:, 0] - natural[:, 0], axis=1) < RADIUS))


def anneal(
    seen: Float[np.ndarray, "color vision 3"],
    allowed: list[Int[np.ndarray, "choice"]],
    target: Float[np.ndarray, "name name"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "name"]:
    """Choose a color for each name: minimize the sum over all pairs of (target / distance) ** POWER."""
    chosen = np.array([rng.choice(options) for options in allowed])
    for step in range(STEPS):
        heat = HEAT * (1 - step / STEPS) ** 2
        name = rng.integers(len(chosen))
        options = allowed[name]
        new = rng.choice(options)
        if rng.random() < 0.7:  # a small step: the nearest of some random options
            some = rng.choice(options, 40)
            new = some[np.linalg.norm(seen[some, 0] - seen[chosen[name], 0], axis=1).argmin()]
        apart = distance(seen[[chosen[name], new]][:, None], seen[chosen][None])
        apart[:, name] = np.inf
        before, after = ((target[name] / np.maximum(apart, 1e-3)) ** POWER).sum(axis=1)
        if np.log(after + 1e-9) - np.log(before + 1e-9) < heat * -np.log(rng.random()):
            chosen[name] = new
    return chosen


if __name__ == "__main__":
    main()
