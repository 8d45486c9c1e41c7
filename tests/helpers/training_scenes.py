"""Draws the tiny dataset that the trainer's tests use: colored regions, five classes, two of them unseen."""

from pathlib import Path

import numpy as np
from folders import draw_folder, make_cache

CLASSES = ("sky", "grass", "road", "cow", "house")
UNSEEN = "cow,house"
VOID = 255
SIZES = ((64, 64), (96, 128), (128, 80), (72, 100), (128, 128), (64, 96), (101, 67), (80, 80))

_COLORS = np.array([(90, 150, 230), (60, 160, 50), (110, 110, 115), (150, 80, 40), (220, 60, 150)])
# each image has its own tint, or an untrained CLIP could hardly distinguish them
_TINTS = np.array(
    [
        (80, -64, -64),
        (-64, 80, -64),
        (-64, -64, 80),
        (80, 80, -64),
        (80, -64, 80),
        (-64, 80, 80),
        (-56, -56, -56),
        (176, 176, 176),
    ]
)


def draw_scene(index: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map: bands of the three seen classes, unseen things in most, a void corner."""
    rng = np.random.default_rng(index)
    label = np.zeros((height, width), np.uint8)
    bands, cuts = rng.permutation(3), sorted(rng.integers(height // 5, 4 * height // 5, 2))
    label[:], label[cuts[0] :], label[cuts[1] :] = bands[0], bands[1], bands[2]
    for thing, first in ((3, width // 8), (4, width // 2)):
        if index % 4 in (thing - 3, 2):
            top = rng.integers(0, height // 2)
            label[top : top + height // 2, first : first + width // 3] = thing
    image = 0.6 * (_COLORS[label] + rng.integers(-12, 13, (height, width, 3))) + _TINTS[index % len(_TINTS)]
    label[: height // 10, : width // 10] = VOID
    return image.clip(0, 255).astype(np.uint8), label


def draw_scenes(root: Path) -> Path:
    """A `folder` dataset of eight scenes of different sizes."""
    return draw_folder(root, CLASSES, {str(index): draw_scene(index, *size) for index, size in enumerate(SIZES)})


def cache_scenes(root: Path, cache: Path) -> Path:
    """Precompute the scenes."""
    return make_cache(root, cache, shard=4, unseen=UNSEEN)
