"""A student trained for a moment on drawn pictures, for tests of what is made of a run."""

from pathlib import Path
from typing import NamedTuple

from pictures import CLASSES, draw_folder

from data_cache.views import Cropping
from pipeline.precompute import Settings, execute, plan
from pipeline.weights import TINY, CLIPSource
from trainer.config import TrainConfig
from trainer.loop import train

VIEWS = 3
CLIP = CLIPSource(TINY)  # an untrained one could not tell one token from another


class SmallRun(NamedTuple):
    """Where its dataset, its cache and its folder are."""

    root: Path
    cache: Path
    run: Path


def cache_at(path: Path, root: Path, unseen: str = "disc", clip: CLIPSource = CLIP, **given: object) -> Path:
    """A cache of drawn pictures, crops included."""
    options = {"device": "cpu", "precision": "fp32", "shard": 4, "cropping": Cropping(VIEWS), **given}
    execute(plan(Settings("folder", path, root, clip=clip, unseen=unseen, **options)))
    return path


def small_run(folder: Path, classes: tuple[str, ...] = CLASSES, unseen: str = "disc") -> SmallRun:
    """Draw, cache, and train for three updates."""
    draw_folder(folder / "drawn", {"train": 6, "val": 3})
    (folder / "drawn/classes.txt").write_text("\n".join(classes) + "\n")
    made = SmallRun(folder / "drawn", folder / "drawn.zarr", folder / "run")
    cache_at(made.cache, made.root, unseen)
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
