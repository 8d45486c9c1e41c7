"""Synthetic images for benchmarks: JPEG files as large as those of COCO."""

from pathlib import Path

from data_cache.splits import Split
from experiments import drawn_images

CLASSES = ("sky", "grass", "tree", "gnome")
DRAWN = 256
"""Number of distinct images; further ones are hard links to them."""
UNSEEN = "tree"


def draw_images(root: Path, count: int, height: int = 480, width: int = 640) -> Path:
    """A dataset of four classes, one of them unseen (`experiments.drawn_images`)."""
    return drawn_images.draw_images(root, count, Split(CLASSES, (UNSEEN,)), height, width)


def link_images(root: Path, count: int) -> Path:
    """A dataset of `count` images, of which at most `DRAWN` are distinct."""
    draw_images(root, min(count, DRAWN))
    for number in range(DRAWN, count):
        for folder, ending in (("images", "jpg"), ("labels", "png")):
            (root / f"{folder}/{number:04}.{ending}").hardlink_to(root / f"{folder}/{number % DRAWN:04}.{ending}")
    return root
