"""What `show` is asked for, and the figure that answers it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import UsageError, UserError
from data_cache.places import cache_folder
from experiments.cached_views import CachedViews, chosen, is_cache
from experiments.centres import masks_figure
from experiments.figures import SIDE, Figure, attention_figure, predictions_figure
from experiments.history import run_in
from experiments.transfer import words_of
from trainer.checkpoint import CARD, Checkpoint, load
from trainer.evaluate import GAMMA, Predictor

MASKS, ATTENTION, PREDICTIONS = "masks", "attention", "predictions"
IMAGES = 4
SMALLEST = 32
_ALWAYS = {"figure", "image", "images", "root", "side"}
TAKES: Mapping[str, set[str]] = {
    MASKS: {*_ALWAYS, "masks", "view"},
    ATTENTION: {*_ALWAYS, "cache", "view", "device"},
    PREDICTIONS: {*_ALWAYS, "dataset", "split", "unseen", "gamma", "device"},
}
"""The options each figure has a use for."""


@dataclass(frozen=True)
class Wanted:
    """What is to be shown; names are those of the command line, None is the default."""

    target: Path
    figure: str | None = None
    image: tuple[str, ...] = ()
    images: str | None = None
    masks: str | None = None
    view: int = 0
    cache: Path | None = None
    dataset: str | None = None
    root: Path | None = None
    split: str = "val"
    unseen: str | None = None
    gamma: float = GAMMA
    device: str = "auto"
    side: int = SIDE

    @property
    def kind(self) -> str:
        """Which figure: masks of a cache; of a run the one that was asked for, or its predictions.

        Raises:
            UsageError: a figure that the target has not, or an option that the figure has no use for.
            UserError: the target is neither.

        """
        if not self.target.exists():
            raise UserError(f"{self.target}: no such cache, and no such run; pass the path of either")
        kind = MASKS if is_cache(self.target) else (self.figure or PREDICTIONS)
        if kind == MASKS and self.figure:
            raise UsageError(f"--{self.figure}: {self.target} is a cache; pass the folder of a run")
        plain = type(self)(self.target)
        for entry in fields(self)[1:]:
            if getattr(self, entry.name) != getattr(plain, entry.name) and entry.name not in TAKES[kind]:
                raise UsageError(f"--{entry.name}: of no use for {kind}; leave it out")
        if self.side < SMALLEST:
            raise UsageError(f"--side {self.side}: must be at least {SMALLEST} pixels")
        return kind

    @property
    def file(self) -> Path:
        """Where the picture goes unless a place is named: into the run's folder; for a cache, the working directory."""
        if self.kind == MASKS:
            return Path(f"{self.target.resolve().name.removesuffix('.zarr')}_masks.png")
        return run_in(self.target) / f"{self.kind}.png"

    def places(self, ids: list[str], first: Callable[[int], list[int]]) -> list[int]:
        """The images to show, in a list of ids, of which `first` gives so many from the start."""
        named = [*self.image]
        if self.images is not None and not self.images.isdecimal():
            named.append(self.images)
        if named and self.images is not None and self.images.isdecimal():
            raise UsageError(f"--images {self.images} and --image: pass a number of images, or the images")
        if named:
            return chosen(ids, named)
        count = IMAGES if self.images is None else int(self.images)
        if count < 1:
            raise UsageError(f"--images {count}: at least one")
        if found := first(count):
            return found
        raise UserError(f"{self.target}: every image failed when it was cached; see `info`")


def figure_of(wanted: Wanted, note: Callable[[Dataset], None] = lambda _: None) -> Figure:
    """Draw what is wanted; `note` hears of a dataset that is opened.

    Raises:
        UsageError, UserError: what cannot be shown, in one line.

    """
    kind = wanted.kind
    if kind == MASKS:
        views = CachedViews.open(wanted.target, wanted.root, wanted.masks, wanted.view)
        return masks_figure(views, wanted.places(views.images.ids, views.first), wanted.side)
    folder = wanted.target if wanted.target.is_dir() else wanted.target.parent
    one = folder if (folder / CARD).is_file() else run_in(wanted.target)
    student = load(one, resolve_device(wanted.device))
    if kind == ATTENTION:
        views = views_for(student, wanted.cache, wanted.root, wanted.view)
        return attention_figure(student, views, wanted.places(views.images.ids, views.first), wanted.side)
    images = images_for(student, wanted.dataset, wanted.root, wanted.split)
    note(images)
    words = words_of(student, images, wanted.unseen, cache_folder())
    places = wanted.places(images.ids, lambda count: list(range(min(count, len(images)))))
    return predictions_figure(Predictor(student, words=words), images, places, wanted.gamma, wanted.side)


def views_for(student: Checkpoint, cache: Path | None, root: Path | None, view: int = 0) -> CachedViews:
    """The cache a student was trained from, or another one of the same CLIP.

    Raises:
        UserError: it is not there, unfinished, or another CLIP's.

    """
    path, root = cache or Path(student.config.cache or ""), root or _path(student.config.root)
    if not path.is_dir():
        raise UserError(f"{path}: the cache whose CLS tokens ask for the attention is not there; pass --cache PATH")
    views = CachedViews.open(
        path, root if cache is None else None, student.config.masks if cache is None else None, view
    )
    if views.cache.fingerprint["clip"] != student.card["clip"]:
        raise UserError(f"{path}: made with another CLIP than this student was trained with; pass --cache of that one")
    return views


def images_for(
    student: Checkpoint, dataset: str | None, root: Path | None, split: str, limit: int | None = None
) -> Dataset:
    """A split of a dataset, by default of the one a student was trained on, where it was then.

    Raises UserError if it is not there.
    """
    about = student.card["dataset"]["name"]
    if root is None and dataset in (None, about):
        root = _path(student.card["recorded"]["root"])
    return open_dataset(dataset or about, root, split, limit)


def _path(text: Any) -> Path | None:
    return Path(text) if text else None
