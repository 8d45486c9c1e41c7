"""A student trained for three updates on drawn shapes, for tests of what uses a run."""

from pathlib import Path
from typing import NamedTuple

from folders import make_cache
from shapes import CLASSES, draw_shapes

from pipeline.teacher.names import TINY
from trainer.config import TrainConfig
from trainer.loop import train

VIEWS = 3


class SmallRun(NamedTuple):
    """Paths of the dataset, its cache and the training run."""

    root: Path
    cache: Path
    run: Path


def cache_shapes(root: Path, cache: Path, **given: object) -> Path:
    """Precompute drawn shapes with crops and the tiny CLIP: an untrained CLIP could not distinguish tokens."""
    defaults = {"clip": TINY, "clip_weights": None, "views": VIEWS, "unseen": "disc", "shard": 4}
    return make_cache(root, cache, **(defaults | given))


def small_run(folder: Path, classes: tuple[str, ...] = CLASSES, unseen: str = "disc") -> SmallRun:
    """Draw, cache, and train for three updates."""
    root = draw_shapes(folder / "drawn", {"train": 6, "val": 3}, classes)
    made = SmallRun(root, cache_shapes(root, folder / "drawn.zarr", unseen=unseen), folder / "run")
    config = TrainConfig(
        cache=str(made.cache),
        encoder_weights="none",
        size=64,
        iterations=3,
        batch_size=2,
        loss_stride=4,
        device="cpu",
        workers=0,
        log_every=1,
    )
    train(config, made.run)
    return made
