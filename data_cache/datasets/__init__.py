"""The registry of datasets, and the function that opens them."""

import os
from dataclasses import replace
from pathlib import Path

from data_cache.class_list import known_lists
from data_cache.datasets import ade, camvid, coco, context, folder, voc
from data_cache.datasets.base import VOID, Dataset, DatasetSpec
from data_cache.datasets.crowd import CROWD
from data_cache.datasets.scenes import SCENES
from data_cache.errors import UnreadableError, UsageError, UserError
from data_cache.messages import did_you_mean
from data_cache.system.files import is_folder, stat_or_none

__all__ = [
    "DATASETS",
    "VOID",
    "WORLDS",
    "Dataset",
    "DatasetSpec",
    "check_root",
    "class_names",
    "labelled_images",
    "open_dataset",
]

WORLDS = {world.name: world for world in (SCENES, CROWD)}
"""The synthetic datasets."""


def _renamed(name: str, folder: str, spec: DatasetSpec) -> DatasetSpec:
    """The same images and label maps under a name without a zero-shot split (`open_vocabularies`)."""
    return replace(spec, open=lambda root, split: replace(spec.open(root, split), name=name), folder=folder)


DATASETS: dict[str, DatasetSpec] = {
    "voc": voc.SPEC,
    "context": context.SPEC,
    "coco": coco.SPEC,
    "camvid": camvid.SPEC,
    "folder": folder.SPEC,
    **{name: world.spec for name, world in WORLDS.items()},
    "ade150": ade.SPEC,
    "context459": context.SPEC_459,
    "context59": _renamed("context59", "context", context.SPEC),
    "voc20": _renamed("voc20", "voc", voc.SPEC),
    "coco171": _renamed("coco171", "coco", coco.SPEC),
}


def open_dataset(name: str, root: Path | None, split: str, limit: int | None = None) -> Dataset:
    """Open a split of a dataset.

    Args:
        name: A key of `DATASETS`.
        root: Its folder. None searches `$CLIPTEACHER_DATA/<name>`, then `data/<name>` below the working directory,
            where variants such as `voc20` have the name of the dataset itself. A synthetic dataset has none.
        split: Such as `train` or `val`; the dataset's spec lists them.
        limit: The maximum number of images; the first ones are kept.

    Raises:
        UsageError: The dataset or split does not exist, the limit is below one, or a synthetic dataset gets a root.
        UserError: The folder, images or label maps are missing.

    """
    if name not in DATASETS:
        raise UsageError(
            f"no dataset named '{name}': choose one of {', '.join(DATASETS)}{did_you_mean(name, DATASETS)}"
        )
    spec = DATASETS[name]
    if spec.splits and split not in spec.splits:
        raise UsageError(f"{name} has no split '{split}': choose one of {', '.join(spec.splits)}")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least one image is needed")
    if spec.layout:
        dataset = _read(spec, _find_root(name, root), split)
    elif root is not None:
        raise UsageError(f"--root {root}: {name} is synthetic and has no files; omit --root")
    else:
        dataset = spec.open(Path(), split)
    return dataset if limit is None else dataset.subset(range(min(limit, len(dataset))))


def class_names(name: str, root: Path | None) -> tuple[str, ...]:
    """The class names of a dataset of `DATASETS`, whose images need not be there unless it is a folder of one's own.

    Raises UserError, as `open_dataset` does, if the folder or its classes.txt is missing or invalid.
    """
    published = known_lists().get(name)
    return published.classes if published else folder.read_classes(_find_root(name, root) / folder.CLASSES)


def check_root(name: str, root: Path | None) -> None:
    """Raise UserError if a dataset's folder is missing. `open_dataset` checks more, but lists all files."""
    if DATASETS[name].layout:
        _find_root(name, root)


def labelled_images(dataset: Dataset) -> Dataset:
    """The images that have a label map, with a note on the number of others; the dataset itself if there are none."""
    indices = [i for i in range(len(dataset)) if dataset.has_label(i)]
    if len(indices) in (0, len(dataset)):
        return dataset
    note = f"{len(dataset) - len(indices)} of {len(dataset)} images have no label map and are not evaluated"
    return replace(dataset.subset(indices), notes=(*dataset.notes, note))


def _read(spec: DatasetSpec, root: Path, split: str) -> Dataset:
    try:
        dataset = spec.open(root, split)
    except (UsageError, UnreadableError):
        raise
    except UserError as error:
        raise UserError(f"{error} (expected below {root}: {spec.layout})") from None
    return replace(dataset, notes=(*spec.notes(dataset.split, len(dataset)), *dataset.notes))


def _find_root(name: str, given: Path | None) -> Path:
    """The folder of a dataset, as an absolute path: workers may run in another working directory."""
    spec = DATASETS[name]
    if given is not None:
        if not is_folder(given.expanduser()):
            problem = "is a file, not a folder" if stat_or_none(given.expanduser()) else "no such folder"
            raise UserError(f"{problem}: {given}: pass --root with the folder that holds {spec.layout}")
        return given.expanduser().absolute()
    folder = spec.folder or name
    candidates = [Path("data") / folder]
    if os.environ.get("CLIPTEACHER_DATA"):
        candidates.insert(0, Path(os.environ["CLIPTEACHER_DATA"]).expanduser() / folder)
    for candidate in candidates:
        if is_folder(candidate):
            return candidate.absolute()
    raise UserError(
        f"{name} was not found: looked for {' and '.join(map(str, candidates))}",
        f"  it needs:  {spec.layout}",
        f"  from:      {spec.source}",
        f"  put it at: {candidates[0]}, or at $CLIPTEACHER_DATA/{folder}, or pass it with --root DIR",
    )
