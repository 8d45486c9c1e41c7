"""Trains zero-shot semantic segmenters from a frozen CLIP, offline: the Python interface.

A mistake raises `UserError`, whose message is one line. Progress and messages go to stderr, as on the command line.
Heavy packages, such as torch, are imported on first use.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_cache.errors import InterruptError, UsageError, UserError
from experiments.config import EvaluateConfig
from pipeline.config import PrecomputeConfig
from trainer.config import TrainConfig

if TYPE_CHECKING:
    from experiments.areas import ClassArea
    from experiments.evaluation import EvaluationReport
    from experiments.segmentation import Segmentation
    from experiments.zero_shot import ZeroShotSegmenter
    from viewer.reader import CacheReader, open_cache

__version__ = "0.1.0"
__all__ = [
    "CacheReader",
    "ClassArea",
    "EvaluateConfig",
    "EvaluationReport",
    "InterruptError",
    "PrecomputeConfig",
    "Segmentation",
    "TrainConfig",
    "UsageError",
    "UserError",
    "ZeroShotSegmenter",
    "evaluate",
    "load",
    "open_cache",
    "precompute",
    "train",
]
_LAZY = {
    "CacheReader": "viewer.reader",
    "ClassArea": "experiments.areas",
    "EvaluationReport": "experiments.evaluation",
    "Segmentation": "experiments.segmentation",
    "ZeroShotSegmenter": "experiments.zero_shot",
    "open_cache": "viewer.reader",
}
"""The module of each name that is imported on first use."""


def precompute(config: PrecomputeConfig, max_failures: float = 0.01) -> "CacheReader":
    """Run CLIP once per view of each image, write the cache, and open it. Call it again to resume unfinished shards.

    Args:
        config: the settings.
        max_failures: accepted share of images that cannot be read.

    Raises:
        UsageError: the settings contradict each other or the dataset.
        UserError: the images, the CLIP or the disk are not usable, another run writes the cache, or too many images
            failed. In the last case the cache is complete nevertheless.
        InterruptError: Ctrl-C; finished shards are kept.

    """
    from commands.stages import run_precompute
    from viewer.reader import open_cache

    _, summary = run_precompute(config)
    summary.check(max_failures)
    return open_cache(summary.cache)


def train(
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    strict: bool = False,
    online: bool = False,
) -> "ZeroShotSegmenter":
    """Train a student from a cache and load it.

    Args:
        config: the settings. Without `cache`, the only cache in the folder of caches is used.
        out: folder of the run; None is runs/<name of the cache>.
        resume: continue from the newest checkpoint in `out`, if there is one.
        strict: compare all images with the cache before the first update, not just a sample.
        online: run CLIP and clustering for each batch instead of reading the cache.

    Raises:
        UsageError: invalid settings, or `out` holds a run and `resume` is False.
        UserError: the cache is not finished, its images changed, or a loss is not finite.
        InterruptError: Ctrl-C; the last update is saved.

    """
    from commands.stages import run_train
    from data_cache.paths import only_cache, run_folder
    from trainer.checkpoint_folders import checkpoints

    cache = Path(config.cache).expanduser() if config.cache else only_cache()
    run = Path(out).expanduser() if out else run_folder(cache)
    resume = resume and bool(checkpoints(run))
    run_train(replace(config, cache=str(cache)), run, resume, strict, online)
    return load(run, config.device)


def evaluate(config: EvaluateConfig) -> "EvaluationReport":
    """Evaluate a student on any dataset: pAcc, mIoU(S), mIoU(U) and hIoU, for each gamma.

    Images that cannot be read are left out, and named in the report's `evaluation.failures`.

    Raises:
        UserError, UsageError: the checkpoint or the images are missing, an image has no label map, or the dataset has
            other classes and the CLIP used in training cannot be loaded.

    """
    from commands.stages import run_evaluate

    return run_evaluate(config)


def load(
    run: str | os.PathLike[str],
    device: str = "auto",
    *,
    sliding: bool = False,
    prompts: str | None = None,
    clip: str | None = None,
    clip_weights: str | None = None,
) -> "ZeroShotSegmenter":
    """Load the newest checkpoint of a run, to segment images with `predict`.

    Args:
        run: a run's folder, a checkpoint's folder, or a file in it.
        device: auto, cpu, cuda or cuda:N.
        sliding: average the logits of overlapping square windows instead of one pass over the whole image.
        prompts: a prompt set for all class names; None is the one used in training.
        clip: the CLIP used in training, if it has moved. It encodes class names that the student does not know.
        clip_weights: weights of `clip`.

    Raises:
        UserError: there is no checkpoint, or it is damaged.
        UsageError: there is no such device.

    """
    from experiments.zero_shot import load_segmenter

    return load_segmenter(run, device, sliding, prompts, clip, clip_weights)


if not TYPE_CHECKING:  # otherwise type checkers would accept any name

    def __getattr__(name: str) -> Any:
        """Import a name of `_LAZY` on first use."""
        if name in _LAZY:
            from importlib import import_module

            return getattr(import_module(_LAZY[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> Sequence[str]:
        return sorted({*globals(), *_LAZY})
