"""Existing caches: whether a run may resume, extend or replace one."""

from pathlib import Path

from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.messages import first_names
from data_cache.metadata import FORMAT
from data_cache.reader import Cache
from data_cache.source_dataset import select_ids
from data_cache.system.atomic import draft_path, remove
from data_cache.system.files import is_file, is_folder, read_errors, stat_or_none
from data_cache.system.lock import writer_lock
from data_cache.transaction import REDO, complete_transaction
from data_cache.writer import CacheWriter


def open_existing(path: Path) -> CacheWriter | None:
    """Open the cache at `path` for writing; None if there is none. Completes an interrupted extension first."""
    if is_folder(path / REDO):
        with writer_lock(path):
            complete_transaction(path)
    return CacheWriter(path) if stat_or_none(path) else None


def match_images(cache: Cache, dataset: Dataset, extend: bool) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset in the cache's order, new images last, and the names of the new ones.

    Raises UserError if images of the cache are missing, or if some are new and `extend` is not set.
    """
    cached_names = cache.ids()
    cached, present = set(cached_names), set(dataset.ids)
    added = tuple(name for name in dataset.ids if name not in cached)
    missing = [name for name in cached_names if name not in present]
    if missing or (added and not extend):
        changes = [
            f"{len(some)} {kind} ({first_names(some)})" for some, kind in ((added, "new"), (missing, "missing")) if some
        ]
        fix = "restore them" if missing else "pass --extend to add them"
        raise UserError(
            f"{cache.path}: the dataset no longer has the same images: {', '.join(changes)}; {fix}, or pass another "
            "--cache PATH, or --overwrite"
        )
    return select_ids(dataset, [*cached_names, *added]), added


def check_replaceable(path: Path) -> None:
    """Raise UserError if anything but a cache, intact or damaged, is at `path`: `--overwrite` must not delete it."""
    if not stat_or_none(path):
        return
    metadata = path / "zarr.json"
    with read_errors(metadata):
        is_cache = is_file(metadata) and FORMAT.encode() in metadata.read_bytes()
    if not is_cache:
        raise UserError(
            f"{path}: not a clipteacher cache, and --overwrite replaces only those; pass another --cache PATH"
        )


def discard(path: Path) -> None:
    """Remove a cache: rename it first, so that it disappears at once."""
    if stat_or_none(path):
        remove(path.rename(draft_path(path)))
