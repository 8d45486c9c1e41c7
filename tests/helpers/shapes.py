"""Images of shapes on a background, with label maps, for tests that need files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from folders import draw_folder

from data_cache.datasets.base import VOID

CLASSES = ("sky", "grass", "sand", "disc", "square", "stripe")
SIDE = 128


def draw_shapes(root: Path, counts: dict[str, int], classes: Sequence[str] = CLASSES) -> Path:
    """A `folder` dataset with the given number of images per split."""
    generator = np.random.default_rng(0)
    names = [f"{split}/{number:03}" for split, count in counts.items() for number in range(count)]
    return draw_folder(root, classes, {name: draw_shape_image(generator) for name in names})


def draw_shape_image(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label map: sky above grass or sand; a disc, a square and a stripe at random positions; noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    label = np.where(y < generator.integers(40, 90), 0, generator.integers(1, 3)).astype(np.uint8)
    for name in generator.permutation(("disc", "square", "stripe")):
        (top, left), size = generator.integers(20, SIDE - 20, 2), generator.integers(12, 28)
        shapes = {
            "disc": (y - top) ** 2 + (x - left) ** 2 < size**2,
            "square": (abs(y - top) < size) & (abs(x - left) < size),
            "stripe": abs((y - top) - (x - left)) < size / 3,
        }
        label[shapes[name]] = CLASSES.index(name)
    base = np.array([(110, 170, 240), (70, 150, 60), (220, 200, 140), (220, 60, 50), (90, 60, 160), (240, 220, 40)])
    image = base[label] + generator.normal(0, 18, (SIDE, SIDE, 3)) + generator.normal(0, 12, 3)
    label[generator.random((SIDE, SIDE)) < 0.01] = VOID
    return image.clip(0, 255).astype(np.uint8), label
