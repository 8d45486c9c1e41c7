"""Synthetic images for benchmarks: JPEG files as large as those of COCO."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("sky", "grass", "tree", "gnome")
DRAWN = 256
"""Number of distinct images; further ones are hard links to them."""
UNSEEN = "tree"


def draw_images(root: Path, count: int, height: int = 480, width: int = 640) -> Path:
    """A `folder` dataset of smooth colors with noise, whose label maps are patches of classes."""
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"images/{number:04}.jpg", quality=90)
        label = rng.choice([0, 1, 2, 2, 3, 255], (6, 8)).astype(np.uint8)
        label = Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST)
        label.save(root / f"labels/{number:04}.png")
    return root


def link_images(root: Path, count: int) -> Path:
    """A dataset of `count` images, of which at most `DRAWN` are distinct."""
    draw_images(root, min(count, DRAWN))
    for number in range(DRAWN, count):
        for folder, ending in (("images", "jpg"), ("labels", "png")):
            (root / f"{folder}/{number:04}.{ending}").hardlink_to(root / f"{folder}/{number % DRAWN:04}.{ending}")
    return root
