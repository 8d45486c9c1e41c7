"""A tiny untrained CLIP, and random tokens, images and label maps for it."""

import numpy as np
import torch
from folders import UNTRAINED, draw_folder

from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.weights import CLIPSource

CONFIG = UNTRAINED["clip"]
CLASSES = ("sky", "road", "tree", "garden gnome")
CPU = torch.device("cpu")


def tiny_clip(weights="random", precision="fp32", image_size=None, config=CONFIG, recipe="output"):
    return FrozenCLIP(CLIPSource(str(config), str(weights), image_size), precision, CPU, recipe=recipe)


def random_dense(seed, grid=(8, 8), channels=16, spread=1.0):
    """Tokens that vary slowly over the grid, as CLIP's do, rounded to float16."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(-(-grid[0] // 3), -(-grid[1] // 3), channels))
    smooth = coarse.repeat(3, 0).repeat(3, 1)[: grid[0], : grid[1]]
    return (smooth + spread * rng.normal(size=(*grid, channels))).astype(np.float16)


def random_image(seed, height=90, width=120):
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4, 5, 3)).repeat(-(-height // 4), 0).repeat(-(-width // 5), 1)[:height, :width]
    return np.clip(blocks + rng.normal(0, 12, blocks.shape), 0, 255).astype(np.uint8)


def random_label_map(seed, height=90, width=120):
    rng = np.random.default_rng(1000 + seed)
    coarse = rng.choice([0, 1, 2, 3, 255], (3, 4))
    return coarse.repeat(-(-height // 3), 0).repeat(-(-width // 4), 1)[:height, :width].astype(np.uint8)


def draw_blocks(root, images, truncated=(), mismatched=(), unlabelled=()):
    """A `folder` dataset 00.png, 01.png, ...; the sets of indices name images with truncated files, label maps of
    another size, and no label map."""

    def label(index):
        return None if index in unlabelled else random_label_map(index)[: 40 if index in mismatched else None]

    draw_folder(root, CLASSES, {f"{index:02}": (random_image(index), label(index)) for index in range(images)})
    for file in (root / f"images/{index:02}.png" for index in truncated):
        file.write_bytes(file.read_bytes()[:200])
    return root
