"""The datasets by name, and the one way to open them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from data_cache.datasets import camvid, coco, context, folder, scenes, voc
from data_cache.datasets.base import VOID, Dataset, PairedFiles, Recipe
from data_cache.errors import UsageError, UserError

__all__ = ["DATASETS", "DRAWN", "VOID", "Dataset", "PairedFiles", "Recipe", "open_dataset"]

DATASETS: dict[str, Recipe] = {
    "voc": voc.RECIPE,
    "context": context.RECIPE,
    "coco": coco.RECIPE,
    "camvid": camvid.RECIPE,
    "folder": folder.RECIPE,
}
DRAWN: dict[str, Callable[[str], Dataset]] = {"scenes": scenes.open_scenes}
"""Datasets that are drawn, not read: they need no files and have no root."""


def open_dataset(name: str, root: Path | None, split: str, limit: int | None = None) -> Dataset:
    """Open a split of a dataset.

    Args:
        name: A key of `DATASETS` or `DRAWN`.
        root: Its folder. None looks at `$CLIPTEACHER_DATA/<name>`, then at `data/<name>` below the working
            directory. A drawn dataset has none.
        split: Such as `train` or `val`; which ones there are depends on the dataset.
        limit: Take only the first so many images.

    Raises:
        UsageError: There is no such dataset or split, the limit is below one, or a drawn dataset is given a root.
        UserError: The folder, images or label maps are missing.

    """
    if name not in DATASETS | DRAWN:
        raise UsageError(f"no dataset named '{name}': choose one of {', '.join((*DATASETS, *DRAWN))}")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: at least one image is needed")
    if name in DRAWN and root is not None:
        raise UsageError(f"--root {root}: {name} is drawn, not read; leave --root out")
    dataset = DRAWN[name](split) if name in DRAWN else _read(DATASETS[name], _root(name, root), split)
    return dataset if limit is None else dataset.limited(limit)


def _read(recipe: Recipe, root: Path, split: str) -> Dataset:
    try:
        dataset = recipe.open(root, split)
    except UsageError:
        raise
    except UserError as error:
        raise UserError(f"{error} (expected below {root}: {recipe.tree})") from None
    return replace(dataset, note=recipe.note(dataset.split, len(dataset)))


def _root(name: str, given: Path | None) -> Path:
    """Return the folder of a dataset as an absolute path: workers may run in another working directory."""
    if given is not None:
        if not given.expanduser().is_dir():
            problem = "is a file, not a folder" if given.expanduser().exists() else "no such folder"
            raise UserError(f"{problem}: {given}: pass --root with the folder that holds {DATASETS[name].tree}")
        return given.expanduser().absolute()
    candidates = [Path("data") / name]
    if os.environ.get("CLIPTEACHER_DATA"):
        candidates.insert(0, Path(os.environ["CLIPTEACHER_DATA"]).expanduser() / name)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate.absolute()
    raise UserError(
        f"{name} is not here: looked for {' and '.join(map(str, candidates))}\n"
        f"  it needs:  {DATASETS[name].tree}\n"
        f"  from:      {DATASETS[name].published}\n"
        f"  put it at: {candidates[0]}, or at $CLIPTEACHER_DATA/{name}, or pass it with --root DIR"
    )
