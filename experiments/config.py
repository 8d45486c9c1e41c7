"""Settings of the commands that use a cache or a student. Their options and help are generated from these classes.

The command line imports this file at start-up, so it imports nothing heavy.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.errors import UsageError
from data_cache.options import argument, check_options, option, same_option
from data_cache.paths import GRAPH, PREDICTED, run_folder
from pipeline.config import PrecomputeConfig
from pipeline.teacher.prompts import CLEAN, prompt_sets
from trainer.config import GAMMA, TrainConfig

ATTENTION, PREDICTIONS = "attention", "predictions"
LARGEST_GAMMA = 1e6
"""Larger than any logit: cosines divided by tau are at most 15."""
_GAMMA = "Added to the logits of classes that had no labels in training"
_DEFAULT_GAMMA = f"; {GAMMA:g} by default, or 0 for a student that was trained with --transductive."
_CHECKPOINT = "A run's folder, or a file in it."
_WEIGHTS = "Weights of --clip."
_CACHE = "The cache used for training, if it has moved."
_PROMPTS = (
    f"Prompt templates: {', '.join(prompt_sets())}, each also with {CLEAN} for cleaned class names; by default those "
    "used in training."
)
_UNSEEN = "Unseen classes of a dataset other than the training dataset; its published split by default."


def _gamma(more: str = _DEFAULT_GAMMA, metavar: str = "NUMBER") -> Any:
    return option(None, _GAMMA + more, -LARGEST_GAMMA, LARGEST_GAMMA, metavar=metavar)


def _clip(source: str) -> Any:
    return option(None, f"The CLIP of the {source}, if it has moved.")


def _device() -> str:
    return same_option(PrecomputeConfig, "device", "auto")


def _sliding() -> bool:
    return option(False, "Sliding window, or the whole image at once (the default).", flags="--sliding/--whole")


class CheckedConfig:
    """Base of settings whose values are checked on creation. Raises UsageError for an invalid value."""

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class InitConfig(CheckedConfig):
    """Settings of `init`."""

    folder: Path = argument("The folder that contains images/ and, if you have them, labels/ and classes.txt.")
    annotations: Path | None = option(
        None,
        "Annotations to convert to labels/ and classes.txt: a COCO JSON file, a CVAT XML file, or a folder of labelme "
        "files or of color-coded PNG files.",
        flags="--from",
    )
    colors: Path | None = option(
        None,
        'The color of each class in color-coded PNG files, such as CVAT\'s labelmap.txt: lines like "road:128,64,128".',
    )
    overwrite: bool = option(False, "Replace classes.txt, and label maps that differ from the annotations.")


@dataclass(frozen=True)
class VerifyConfig(CheckedConfig):
    """Settings of `verify`."""

    cache: Path = argument("A cache.")
    live: int = option(0, "Also compare N random views with the live teacher.", minimum=0, metavar="N")
    seed: int = option(0, "Seed of the random views.", minimum=0)
    repair: bool = option(False, "Recompute damaged shards, and only those.")
    masks: str | None = same_option(TrainConfig, "masks")
    root: Path | None = same_option(PrecomputeConfig, "root")
    clip: str | None = _clip("cache")
    clip_weights: str | None = option(None, _WEIGHTS)
    masks_from: str | None = option(
        None, "The model of `precompute --masks-from`, if it is no longer where it was.", metavar="MODEL"
    )
    device: str = _device()


@dataclass(frozen=True)
class QualityConfig(CheckedConfig):
    """Settings of `quality`."""

    caches: tuple[Path, ...] = argument("Finished caches.")
    folds: int = option(
        2, "Number of parts into which seen classes are divided, each clustered as if it had no labels.", minimum=1
    )
    tolerance: int = option(1, "Distance in tokens up to which a boundary counts as found.", minimum=0, maximum=1000)
    pictures: int = option(3, "Draw the best N and the worst N images; 0 draws none.", minimum=0)
    root: Path | None = same_option(PrecomputeConfig, "root", help="Root of the images, if they have moved.")
    limit: int | None = option(None, "Only the first N images that have labels.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "caches", tuple(dict.fromkeys(self.caches)))
        runs = [run_folder(cache) for cache in self.caches]
        if self.pictures and (same := {run for run in runs if runs.count(run) > 1}):
            raise UsageError(
                f"several caches are named {min(same).name}: their pictures have one file; pass --pictures 0"
            )


@dataclass(frozen=True)
class AttentionConfig(CheckedConfig):
    """Settings of `attention`."""

    cache: Path = argument("A finished cache.")
    run: Path | None = option(None, "Use the features of this run's student; by default the dense tokens of the cache.")
    root: Path | None = same_option(PrecomputeConfig, "root", help="Root of the images, if they have moved.")
    limit: int = option(200, "Only the first N images that have labels.", minimum=1)
    device: str = _device()


@dataclass(frozen=True)
class EvaluateConfig(CheckedConfig):
    """Settings of `evaluate`."""

    checkpoint: Path = argument(_CHECKPOINT)
    dataset: str = same_option(PrecomputeConfig, "dataset")
    root: Path | None = same_option(PrecomputeConfig, "root")
    split: str = same_option(PrecomputeConfig, "split", "val")
    limit: int | None = same_option(PrecomputeConfig, "limit")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    gamma: tuple[float, ...] | None = _gamma(
        f"{_DEFAULT_GAMMA} Several are evaluated in one pass; which is best depends on the student.", "NUMBER,..."
    )
    pick_gamma: int = option(
        0,
        "Also evaluate at the largest gamma that hardly lowers accuracy on seen classes, picked on the first N "
        "training images.",
        minimum=0,
        metavar="N",
    )
    sliding: bool = _sliding()
    prompts: str | None = same_option(PrecomputeConfig, "prompts")
    clip: str | None = _clip("training")
    clip_weights: str | None = option(None, _WEIGHTS)
    device: str = _device()

    def __post_init__(self) -> None:
        if not self.dataset:
            raise UsageError("--dataset: name the dataset to evaluate on, or pass --preset")
        if self.gamma is not None:
            gammas = self.gamma if isinstance(self.gamma, tuple | list) else (self.gamma,)
            object.__setattr__(self, "gamma", tuple(dict.fromkeys(gammas)))
        super().__post_init__()


@dataclass(frozen=True)
class PredictConfig(CheckedConfig):
    """Settings of `predict`."""

    checkpoint: Path = argument(_CHECKPOINT)
    images: Path = argument("An image, or a folder that is searched for images recursively.")
    classes: str | None = option(
        None,
        'Class names to choose from, such as "frisbee,tree,grass", or a file with one name per line; those of the '
        "training by default.",
        metavar="NAMES",
    )
    out: Path | None = option(None, f"Output folder; {PREDICTED} in the run's folder by default.")
    gamma: float | None = _gamma()
    sliding: bool = _sliding()
    prompts: str | None = same_option(PrecomputeConfig, "prompts", help=_PROMPTS)
    clip: str | None = _clip("training")
    clip_weights: str | None = option(None, _WEIGHTS)
    device: str = _device()


@dataclass(frozen=True)
class ExportConfig(CheckedConfig):
    """Settings of `export`."""

    checkpoint: Path = argument(_CHECKPOINT)
    onnx: Path | None = option(None, f"The file to write; {GRAPH} in the run's folder by default.", metavar="FILE")
    classes: str | None = same_option(PredictConfig, "classes")
    gamma: float | None = _gamma(". By default the graph adds nothing.")
    size: str | None = option(
        None,
        "Image size that the graph accepts; any by default, except for encoders that would then take very long to "
        "export (Swin): these get the training size.",
        metavar="N | HEIGHT,WIDTH | any",
    )
    prompts: str | None = same_option(PredictConfig, "prompts")
    clip: str | None = _clip("training")
    clip_weights: str | None = option(None, _WEIGHTS)


@dataclass(frozen=True)
class ShowConfig(CheckedConfig):
    """Settings of `show`. `figure` is ATTENTION, PREDICTIONS or None: masks of a cache, or predictions of a run."""

    target: Path = argument("A cache, a run's folder, or a checkpoint.")
    image: tuple[str, ...] = option(
        (), "An image, by its index, its id, or the end of its id. Repeatable.", metavar="I,..."
    )
    images: str | None = option(None, "The first N images (4 by default), or images as for --image.", metavar="N")
    masks: str | None = same_option(TrainConfig, "masks")
    view: int = option(0, "Which view of a cached image; 0 is the whole image.", minimum=0)
    cache: Path | None = option(None, f"For --attention: {_CACHE[0].lower()}{_CACHE[1:]}")
    dataset: str | None = same_option(PrecomputeConfig, "dataset", help="For --predictions: the dataset.")
    root: Path | None = same_option(PrecomputeConfig, "root")
    split: str = option("val", "For --predictions: the split.")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    gamma: float | None = _gamma()
    side: int = option(192, "Longer side of a panel in pixels.", minimum=32)
    device: str = _device()
    figure: str | None = None


@dataclass(frozen=True)
class ReportConfig(CheckedConfig):
    """Settings of `report`."""

    run: Path = argument("A run's folder, finished or not, or the demo's.")
    result: Path | None = option(
        None, "Saved output of `evaluate --json` or `reproduce`; without it, the run is evaluated."
    )
    dataset: str | None = same_option(
        PrecomputeConfig, "dataset", help="The dataset to evaluate on; the training dataset by default."
    )
    root: Path | None = same_option(PrecomputeConfig, "root")
    split: str = same_option(PrecomputeConfig, "split", "val")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    limit: int | None = same_option(PrecomputeConfig, "limit")
    cache: Path | None = option(None, _CACHE)
    pictures: int = option(6, "Images per figure.", minimum=0)
    gamma: float | None = _gamma()
    device: str = _device()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.result and self.limit:
            raise UsageError("--limit: --result has already been measured; leave one of them out")
