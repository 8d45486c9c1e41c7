"""The color of a class, which follows from its name.

- A name of a published class list has the color of `class_colors.json`, always and everywhere, whatever is shown next
  to it. `docs/class_colors.py` chose these colors: natural ones for sky, grass, water and the like, and all of them
  distinguishable. Case, spaces and hyphens do not matter, and synonyms ("sofa", "couch") share a color.
- Any other name has the first color of its own sequence (from a hash of the name) that is far enough from all colors
  before it: from those of published names, then from those of other names in the order of their hashes. So the color
  depends on the set of names, not on their order, and only where two colors would be too similar.

The set of names is the vocabulary of a command (all its classes), not the classes that happen to occur in a figure.
"""

import json
import unicodedata
from collections.abc import Container, Sequence
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from data_cache.splits import meaning
from viewer.color_vision import distance, oklab
from viewer.palette import BLANK, HATCH, OUTLINE

COLORS_FILE = Path(__file__).with_name("class_colors.json")
ALIASES = {
    "animal": "cow", "asphalt": "road", "beach": "sand", "bike": "bicycle", "field": "grass",
    "forest": "tree", "human": "person", "lake": "water", "lawn": "grass", "meadow": "grass", "ocean": "sea",
    "pedestrian": "person", "people": "person", "pool": "water", "rider": "bicyclist", "sign symbol": "sign",
    "soil": "dirt", "stream": "river", "street": "road", "trees": "tree", "vegetation": "tree",
}  # fmt: skip
"""Common names that no published list has, and the published name whose color they share."""

SPACING = (0.06, 0.03)
"""Least distance of a color from those before it. The second holds if no color is that far from all of them, and if
none satisfies the second either, the name has the farthest color."""
DARKEST = 0.28
"""Least lightness in OKLab."""


def class_colors(names: Sequence[str]) -> UInt8[np.ndarray, "class 3"]:
    """The sRGB color of each class of a vocabulary; all differ, unless hundreds of names are in no published list."""
    return _class_colors(tuple(names))


@lru_cache(maxsize=64)
def _class_colors(names: tuple[str, ...]) -> UInt8[np.ndarray, "class 3"]:
    chosen: dict[str, UInt8[np.ndarray, "3"]] = {}
    owners: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (squeezed(name) not in published(), name)):
        key = known_key(name, published())
        if key is not None and owners.setdefault(key, name) == name:
            chosen[name] = published()[key]
    others = sorted(set(names) - chosen.keys(), key=lambda name: (_hash(name), name))
    chosen |= _place(others, list(chosen.values()))
    colors = np.stack([chosen[name] for name in names]) if names else np.empty((0, 3), np.uint8)
    colors.flags.writeable = False
    return colors


def squeezed(name: str) -> str:
    """Letters and digits only, in lower case, without COCO-Stuff's "-other" and "-stuff"."""
    plain = unicodedata.normalize("NFKC", name).casefold().removesuffix("-other").removesuffix("-stuff")
    return "".join(letter for letter in plain if letter.isalnum())


@cache
def published() -> dict[str, UInt8[np.ndarray, "3"]]:
    """The colors of `class_colors.json` by squeezed name."""
    entries = json.loads(COLORS_FILE.read_text(encoding="utf-8"))
    return {squeezed(name): np.frombuffer(bytes.fromhex(color[1:]), np.uint8) for name, color in entries.items()}


def known_key(name: str, known: Container[str]) -> str | None:
    """The squeezed name, or that of a synonym or an alias, whichever is in `known`; None if none is."""
    plain = " ".join(name.lower().split())
    candidates = (plain, meaning(plain), ALIASES.get(plain, ""))
    return next((key for key in map(squeezed, candidates) if key in known), None)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(" ".join(name.casefold().split()).encode(), digest_size=8).digest())


def _place(names: Sequence[str], before: Sequence[UInt8[np.ndarray, "3"]]) -> dict[str, UInt8[np.ndarray, "3"]]:
    """Colors for other names, in their order: each takes the first of its sequence that satisfies `SPACING`."""
    colors, seen = _free_colors()
    nearest = np.full(len(colors), np.inf)
    for color in before:
        nearest = np.minimum(nearest, distance(seen, oklab(color[None])))
    chosen = {}
    for name in names:
        sequence = _sequence(name, len(colors))
        least = next((least for least in SPACING if nearest.max() >= least), nearest.max())
        index = sequence[(nearest[sequence] >= least).argmax()]
        chosen[name] = colors[index]
        nearest = np.minimum(nearest, distance(seen, seen[index]))
    return chosen


def _sequence(name: str, count: int) -> Int[np.ndarray, "color"]:
    """A permutation of the free colors (double hashing; `count` is a prime)."""
    step, start = divmod(_hash(name), count)
    return (start + (1 + step % (count - 1)) * np.arange(count)) % count


@cache
def _free_colors() -> tuple[UInt8[np.ndarray, "color 3"], Float[np.ndarray, "color vision 3"]]:
    """A grid of colors that differ from unlabelled area, outlines and white, and their OKLab values."""
    grid = np.array(list(product(range(0, 256, 36), repeat=3)), np.uint8)
    others = oklab(np.array([BLANK, HATCH, OUTLINE, [255, 255, 255]]))
    seen = oklab(grid)
    grid = grid[(distance(seen[:, None], others).min(axis=1) >= SPACING[0]) & (seen[:, 0, 0] > DARKEST)]
    prime = next(n for n in range(len(grid), 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1)))
    return grid[:prime], oklab(grid[:prime])
