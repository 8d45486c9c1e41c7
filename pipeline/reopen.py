"""A cache that is there already: is it the one that is asked for, what is new, and what of it stays."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from data_cache.content import Shard
from data_cache.datasets.base import Dataset
from data_cache.drafts import draft_of, remove
from data_cache.errors import UserError
from data_cache.lock import writer_lock
from data_cache.redo import REDO, finish
from data_cache.schema import FORMAT
from data_cache.source import changed, names, ordered
from data_cache.store import Cache


def reopened(path: Path) -> Cache | None:
    """The cache at `path` for writing, None if nothing is there. An extension that was cut short is carried out."""
    if (path / REDO).is_dir():
        with writer_lock(path):
            finish(path)
    return Cache(path, mode="r+") if path.exists() else None


def same_images(cache: Cache, dataset: Dataset, extend: bool) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset in the cache's order, new images last, and the names of those.

    Raises UserError if images of the cache are gone, or some are new and it is not to be extended.
    """
    there, here = cache.ids(), set(dataset.ids)
    added = tuple(name for name in dataset.ids if name not in set(there)) if here != set(there) else ()
    gone = [name for name in there if name not in here]
    if gone or (added and not extend):
        told = [f"{len(some)} {kind} ({names(some)})" for some, kind in ((added, "new"), (gone, "gone")) if some]
        cure = "restore them" if gone else "pass --extend to add them"
        raise UserError(
            f"{cache.path}: the images are not those it was made from: {', '.join(told)}; {cure}, or pass another "
            "--cache PATH, or --overwrite"
        )
    return ordered(dataset, [*there, *added]), added


def check_unchanged(cache: Cache, dataset: Dataset) -> None:
    """Raise UserError naming images whose files, or label maps, changed since they were encoded. Reads them all."""
    if others := changed(cache, dataset):
        raise UserError(
            f"{cache.path}: {len(others)} images or their label maps changed since they were encoded "
            f"({names(others)}); restore them, or pass another --cache PATH, or --overwrite"
        )


def check_replaceable(path: Path) -> None:
    """Raise UserError if something is at `path` that `--overwrite` must not delete: only a cache, sound or not."""
    if not path.exists():
        return
    card = path / "zarr.json"
    if not (card.is_file() and FORMAT.encode() in card.read_bytes()):
        raise UserError(f"{path}: not a clipteacher cache, so --overwrite leaves it alone; pass another --cache PATH")


def discard(path: Path) -> None:
    """Remove a cache: at once from its place, then from the disk."""
    if path.exists():
        remove(path.rename(draft_of(path)))


def fill_in(shard: Shard, kept: Shard, rows: Sequence[int]) -> None:
    """Take all images of a shard but `rows` from what was stored; dense tokens stay where they are."""
    others = [row for row in range(len(kept.status)) if row not in set(rows)]
    for name in (field.name for field in fields(Shard) if field.name != "dense"):
        ours, theirs = getattr(shard, name), getattr(kept, name)
        for row in others:
            ours[row] = theirs[row]
