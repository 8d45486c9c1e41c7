"""The figures of `show`: masks of a cache, a student's attention or its predictions."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_cache.callbacks import OnDataset, ignore
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError
from data_cache.paths import cache_folder, figure_file, run_folder
from data_cache.system.devices import resolve_device
from experiments.config import ATTENTION, PREDICTIONS, ShowConfig
from experiments.figures import attention_figure, predictions_figure
from experiments.image_choice import choose_images
from experiments.scales import masks_figure
from experiments.transfer import vocabulary_for_dataset
from trainer.checkpoint import Checkpoint, load
from trainer.checkpoint_folders import check_target, run_of
from trainer.predictor import Predictor
from viewer.figure import Figure
from viewer.reader import CacheReader, ImageRecord, open_finished_cache

MASKS = "masks"
IMAGES = 4
_ALWAYS = {"figure", "image", "images", "root", "side"}
OPTIONS: Mapping[str, set[str]] = {
    MASKS: {*_ALWAYS, "masks", "view"},
    ATTENTION: {*_ALWAYS, "cache", "view", "device"},
    PREDICTIONS: {*_ALWAYS, "dataset", "split", "unseen", "gamma", "device"},
}
"""The options that apply to each figure."""


def kind_of(config: ShowConfig) -> str:
    """The kind of figure: masks for a cache; for a run the requested one, predictions by default.

    Raises:
        UsageError: the target has no such figure, or an option does not apply to it.
        UserError: the target does not exist.

    """
    check_target(config.target)
    is_cache = (config.target / "zarr.json").is_file()
    kind = MASKS if is_cache else (config.figure or PREDICTIONS)
    if kind == MASKS and config.figure:
        raise UsageError(f"--{config.figure}: {config.target} is a cache; pass the folder of a run")
    defaults = ShowConfig(config.target)
    for entry in fields(config):
        if getattr(config, entry.name) != getattr(defaults, entry.name) and entry.name not in OPTIONS[kind]:
            raise UsageError(f"--{entry.name}: does not apply to {kind}; leave it out")
    return kind


def default_file(config: ShowConfig) -> Path:
    """The output file without `--out`."""
    kind = kind_of(config)
    return figure_file(run_folder(config.target) if kind == MASKS else run_of(config.target), kind)


def indices_of(config: ShowConfig, ids: list[str], first: Callable[[int], list[int]]) -> list[int]:
    """Indices into `ids` of the images to show; `first(n)` returns the indices of the first n images."""
    names, count = [*config.image], IMAGES
    if config.images is not None and config.images.isdecimal():
        if names:
            raise UsageError(f"--images {config.images} and --image: pass a number of images, or the images")
        count = int(config.images)
    elif config.images is not None:
        names.append(config.images)
    if names:
        return choose_images(ids, names)
    if count < 1:
        raise UsageError(f"--images {count}: must be at least 1")
    if indices := first(count):
        return indices
    raise UserError(f"{config.target}: every image failed when it was cached; see `info`")


def views_of(config: ShowConfig, cache: CacheReader) -> list[ImageRecord]:
    """The views of a cache to show."""
    return [cache[index].view(config.view) for index in indices_of(config, cache.ids, cache.first_ok)]


def figure_of(config: ShowConfig, on_dataset: OnDataset = ignore) -> Figure:
    """Draw the figure. Raises UsageError or UserError, in one line."""
    kind = kind_of(config)
    if kind == MASKS:
        return masks_figure(
            views_of(config, open_finished_cache(config.target, config.root, config.masks)), config.side
        )
    checkpoint = load(config.target, resolve_device(config.device))
    if kind == ATTENTION:
        cache = training_cache(checkpoint, config.cache, config.root)
        return attention_figure(checkpoint, views_of(config, cache), config.side)
    images = training_dataset(checkpoint, config.dataset, config.root, config.split)
    on_dataset(images)
    vocabulary = vocabulary_for_dataset(checkpoint, images, config.unseen, cache_folder())
    indices = indices_of(config, images.ids, lambda count: list(range(min(count, len(images)))))
    predictor, gamma = Predictor(checkpoint, vocabulary=vocabulary), checkpoint.gamma(config.gamma)
    return predictions_figure(predictor, images, indices, gamma, config.side)


def training_cache(checkpoint: Checkpoint, cache: Path | None, root: Path | None) -> CacheReader:
    """The cache that a student was trained from, or another one of the same CLIP.

    Raises UserError if it is missing, unfinished, or of another CLIP.
    """
    path, root = cache or Path(checkpoint.config.cache or ""), root or _path(checkpoint.config.root)
    if not path.is_dir():
        raise UserError(f"{path}: no such cache; attention needs the CLS tokens of a cache, pass --cache PATH")
    own = cache is None
    reader = open_finished_cache(path, root if own else None, checkpoint.config.masks if own else None)
    if reader.cache.fingerprint["clip"] != checkpoint.card["clip"]:
        raise UserError(f"{path}: made with another CLIP than this student's; pass --cache with a matching cache")
    return reader


def training_dataset(
    checkpoint: Checkpoint, dataset: str | None, root: Path | None, split: str, limit: int | None = None
) -> Dataset:
    """A split of a dataset, by default of the one that a student was trained on, at its recorded location.

    Raises UserError if it is missing.
    """
    name = checkpoint.card["dataset"]["name"]
    if root is None and dataset in (None, name):
        root = _path(checkpoint.card["recorded"]["root"])
    return open_dataset(dataset or name, root, split, limit)


def _path(text: Any) -> Path | None:
    return Path(text) if text else None
