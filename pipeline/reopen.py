"""The cache of a run, if it exists already: whether it may be continued, extended or replaced."""

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
    """The cache at `path` for writing, None if nothing is there. An interrupted extension is completed first."""
    if is_folder(path / REDO):
        with writer_lock(path):
            complete_transaction(path)
    return CacheWriter(path) if stat_or_none(path) else None


def match_images(cache: Cache, dataset: Dataset, extend: bool) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset in the cache's order, new images last, and the names of the new ones.

    Raises UserError if images of the cache are gone, or if some are new and `extend` is not set.
    """
    cached_names = cache.ids()
    cached, present = set(cached_names), set(dataset.ids)
    added = tuple(name for name in dataset.ids if name not in cached)
    gone = [name for name in cached_names if name not in present]
    if gone or (added and not extend):
        changes = [
            f"{len(some)} {kind} ({first_names(some)})" for some, kind in ((added, "new"), (gone, "gone")) if some
        ]
        fix = "restore them" if gone else "pass --extend to add them"
        raise UserError(
            f"{cache.path}: the images are not those it was made from: {', '.join(changes)}; {fix}, or pass another "
            "--cache PATH, or --overwrite"
        )
    return select_ids(dataset, [*cached_names, *added]), added


def check_replaceable(path: Path) -> None:
    """Raise UserError if something is at `path` that `--overwrite` must not delete: only a cache, sound or not."""
    if not stat_or_none(path):
        return
    metadata = path / "zarr.json"
    with read_errors(metadata):
        ours = is_file(metadata) and FORMAT.encode() in metadata.read_bytes()
    if not ours:
        raise UserError(f"{path}: not a clipteacher cache, so --overwrite leaves it alone; pass another --cache PATH")


def discard(path: Path) -> None:
    """Remove a cache: at once from its place, then from the disk."""
    if stat_or_none(path):
        remove(path.rename(draft_path(path)))
