"""A `folder` dataset on disk and a cache of it: the one place where tests make either."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pipeline.config import PrecomputeConfig
from pipeline.plan import plan
from pipeline.precompute import execute

UNTRAINED = {"clip": str(Path(__file__).parent / "tiny-vit.json"), "clip_weights": "random"}
"""A CLIP of 128 px, 16 px patches and 64 channels."""


class CachedDataset(NamedTuple):
    """Paths of a dataset and its cache."""

    root: Path
    cache: Path


def draw_folder(
    root: Path, classes: Sequence[str], samples: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
) -> Path:
    """Write classes.txt, and the image and the label map (or None) of each name, such as "train/000"."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    for name, arrays in samples.items():
        for kind, array in zip(("images", "labels"), arrays, strict=True):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
            if array is not None:
                Image.fromarray(array).save(root / kind / f"{name}.png")
    return root


def precompute_config(root: Path | None, cache: Path, **given: object) -> PrecomputeConfig:
    """Settings of `precompute` for a `folder` dataset: an untrained CLIP in fp32 on the CPU; keywords override them."""
    defaults = {"dataset": "folder", **UNTRAINED, "device": "cpu", "precision": "fp32"}
    return PrecomputeConfig(root=root, cache=cache, **(defaults | given))


def make_cache(root: Path, cache: Path, **given: object) -> Path:
    """Precompute a `folder` dataset with the settings of `precompute_config`; images may fail."""
    execute(plan(precompute_config(root, cache, **given)))
    return cache
