"""The settings of the commands that use a cache or a student: the source of their options and of their help.

Nothing heavy is imported here: the command line reads this file before it knows whether there is anything to do.
"""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from data_cache.errors import UsageError
from data_cache.options import argument, check_options, option, same_option
from pipeline.config import PrecomputeConfig
from pipeline.teacher.prompts import CLEAN, prompt_sets
from trainer.config import GAMMA, TrainConfig

ATTENTION, PREDICTIONS = "attention", "predictions"
LARGEST_GAMMA = 1e6
"""Beyond any logit: cosines over tau are 15 at the most."""
_GAMMA = "Added to the logits of classes that had no labels in training."
_CLIP = "The CLIP of the training, if it cannot be found where it was then."
_WEIGHTS = "Its weights, likewise."
_CACHE = "The cache of the training, if it is no longer where it was."
_OWN_PROMPTS = (
    f"Prompt templates: {', '.join(prompt_sets())}, each also with {CLEAN} for cleaned class names; by default those "
    "of the training."
)
_UNSEEN = "Unseen classes of a dataset with other classes than the training's; its published split by default."


def _gamma(default: float | tuple[float, ...] | None, more: str = "", metavar: str = "NUMBER") -> Any:
    return option(default, _GAMMA + more, -LARGEST_GAMMA, LARGEST_GAMMA, metavar=metavar)


def _sliding() -> bool:
    return option(False, "Sliding window, or the whole image at once (the default).", flags="--sliding/--whole")


@dataclass(frozen=True)
class VerifyConfig:
    """Settings of `verify`."""

    cache: Path = argument("A cache.")
    live: int = option(0, "Also compare N random views with the live teacher.", minimum=0, metavar="N")
    seed: int = option(0, "Seed of the choice of views.", minimum=0)
    repair: bool = option(False, "Make damaged shards again, and only those.")
    masks: str | None = same_option(TrainConfig, "masks")
    root: Path | None = same_option(PrecomputeConfig, "root")
    clip: str | None = option(None, "The CLIP of the cache, if it cannot be found where it was then.")
    clip_weights: str | None = option(None, _WEIGHTS)
    device: str = same_option(PrecomputeConfig, "device", "auto")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `evaluate`."""

    checkpoint: Path = argument("A run's folder, or a file in it.")
    dataset: str = same_option(PrecomputeConfig, "dataset")
    root: Path | None = same_option(PrecomputeConfig, "root")
    split: str = same_option(PrecomputeConfig, "split", "val")
    limit: int | None = same_option(PrecomputeConfig, "limit")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    gamma: tuple[float, ...] = _gamma((GAMMA,), " Several are evaluated in one pass.", "NUMBER,...")
    pick_gamma: int = option(
        0,
        "Also evaluate at the greatest gamma that costs seen classes next to nothing on the first N training images.",
        minimum=0,
        metavar="N",
    )
    sliding: bool = _sliding()
    prompts: str | None = same_option(PrecomputeConfig, "prompts")
    clip: str | None = option(None, _CLIP)
    clip_weights: str | None = option(None, _WEIGHTS)
    device: str = same_option(PrecomputeConfig, "device", "auto")

    def __post_init__(self) -> None:
        if not self.dataset:
            raise UsageError("--dataset: name the dataset to evaluate on, or pass --preset")
        object.__setattr__(self, "gamma", tuple(dict.fromkeys(self.gamma)))
        check_options(self)


@dataclass(frozen=True)
class PredictConfig:
    """Settings of `predict`."""

    checkpoint: Path = argument("A run's folder, or a file in it.")
    photographs: Path = argument("An image, or a folder of images; its subfolders are searched too.")
    classes: str | None = option(
        None,
        'Class names to choose from, as "frisbee,tree,grass", or a file with one name per line; the classes of the '
        "training by default.",
        metavar="NAMES",
    )
    out: Path = option(Path("runs/predict"), "Folder of the results.")
    gamma: float = _gamma(GAMMA)
    sliding: bool = _sliding()
    prompts: str | None = same_option(PrecomputeConfig, "prompts", help=_OWN_PROMPTS)
    clip: str | None = option(None, _CLIP)
    clip_weights: str | None = option(None, _WEIGHTS)
    device: str = same_option(PrecomputeConfig, "device", "auto")

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ExportConfig:
    """Settings of `export`."""

    checkpoint: Path = argument("A run's folder, or a file in it.")
    onnx: Path = option(MISSING, "The file to write.", metavar="FILE")
    classes: str | None = same_option(PredictConfig, "classes")
    gamma: float | None = _gamma(None, " By default the graph adds nothing.")
    size: str | None = option(
        None,
        "Image size the graph is bound to; any by default, but the training's for encoders whose export would then "
        "take very long (Swin).",
        metavar="N | HEIGHT,WIDTH | any",
    )
    prompts: str | None = same_option(PredictConfig, "prompts")
    clip: str | None = option(None, _CLIP)
    clip_weights: str | None = option(None, _WEIGHTS)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ShowConfig:
    """Settings of `show`; `figure` is ATTENTION or PREDICTIONS; None is PREDICTIONS of a run, and masks of a cache."""

    target: Path = argument("A cache, a run's folder, or a checkpoint.")
    image: tuple[str, ...] = option(
        (), "An image by its index, its id, or the end of its id. Repeatable.", metavar="I,..."
    )
    images: str | None = option(None, "The first N images, 4 by default; or as --image.", metavar="N")
    masks: str | None = same_option(TrainConfig, "masks")
    view: int = option(0, "Which view of a cached image; 0 is the whole image.", minimum=0)
    cache: Path | None = option(None, f"For --attention: {_CACHE[0].lower()}{_CACHE[1:]}")
    dataset: str | None = same_option(PrecomputeConfig, "dataset", help="For --predictions: the dataset.")
    root: Path | None = same_option(PrecomputeConfig, "root")
    split: str = option("val", "For --predictions: the split.")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    gamma: float = _gamma(GAMMA)
    side: int = option(192, "Pixels of a panel's longer side.", minimum=32)
    device: str = same_option(PrecomputeConfig, "device", "auto")
    figure: str | None = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class ReportConfig:
    """Settings of `report`."""

    run: Path = argument("A run's folder, finished or not; or the demo's.")
    result: Path | None = option(
        None, "A result of `evaluate --json` or `reproduce`; without one the run is evaluated."
    )
    dataset: str | None = same_option(
        PrecomputeConfig, "dataset", help="The dataset to evaluate on; the training's own by default."
    )
    root: Path | None = same_option(PrecomputeConfig, "root")
    split: str = same_option(PrecomputeConfig, "split", "val")
    unseen: str | None = option(None, _UNSEEN, metavar="NAMES")
    limit: int | None = same_option(PrecomputeConfig, "limit")
    cache: Path | None = option(None, _CACHE)
    pictures: int = option(6, "Images per figure.", minimum=0)
    gamma: float = _gamma(GAMMA)
    device: str = same_option(PrecomputeConfig, "device", "auto")

    def __post_init__(self) -> None:
        check_options(self)
        if self.result and self.limit:
            raise UsageError("--limit: a --result has been measured already; leave one of them out")
