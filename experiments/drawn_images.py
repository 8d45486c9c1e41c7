"""A folder of drawn images with the size, the file size and the classes of a real dataset, to measure speed with."""

from pathlib import Path

import numpy as np
from PIL import Image

from data_cache.datasets.base import VOID
from data_cache.datasets.folder import CLASSES
from data_cache.splits import Split


def draw_images(root: Path, count: int, split: Split, height: int = 480, width: int = 640) -> Path:
    """A `folder` dataset of smooth colors with noise, whose JPEG files are as large as those of COCO.

    Label maps are 6 x 8 patches of a few classes, half of which are void or of unseen classes.
    """
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    (root / CLASSES).write_text("\n".join(split.classes), encoding="utf-8")
    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(coarse).astype(int) + rng.integers(-12, 13, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / f"images/{number:04}.jpg", quality=90)
        ignored = [VOID, *(rng.choice(split.unseen_index, 2) if split.unseen else [VOID])]
        present = [*rng.choice(split.seen_index, len(ignored)), *ignored]
        label = Image.fromarray(rng.choice(present, (6, 8)).astype(np.uint8))
        label.resize((width, height), Image.Resampling.NEAREST).save(root / f"labels/{number:04}.png")
    return root
