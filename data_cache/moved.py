"""A cache that is moved or removed during a write: nothing is created at its old path, and the writer reports it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from data_cache.errors import UserError
from data_cache.system.atomic import remove
from data_cache.system.files import is_file

CHUNKS = "c"
"""The folder with an array's chunks in Zarr v3."""


class ExistingStore(LocalStore):
    """A Zarr store in an existing folder, which it never creates. Raises FileNotFoundError once the folder is gone."""

    async def _open(self, *, mode: str | None = None) -> None:
        await asyncio.to_thread(_check_there, self.root)
        # private: skips LocalStore's own, which creates the folder (tests/pipeline/test_moved.py)
        await Store._open(self)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value, as `LocalStore` does."""
        await asyncio.to_thread(make_folders, self.root, key)
        await super().set(key, value)


def make_folders(root: Path, key: str) -> None:
    """Make the folders of a file in a cache, and never the cache's own. Raises FileNotFoundError if that is gone."""
    _check_there(root)
    for folder in reversed(Path(key).parents):
        if folder != Path():
            (root / folder).mkdir(exist_ok=True)


def _check_there(root: Path) -> None:
    (root / "zarr.json").stat()


@contextmanager
def moved_cache_errors(cache: Path) -> Iterator[None]:
    """Raise UserError if the cache is no longer at its path when the block ends or raises."""
    moved = f"{cache}: was moved or removed while it was written; rerun the command with its new path to resume"
    try:
        yield
    except Exception:
        if is_file(cache / "zarr.json"):
            raise
        _remove_orphans(cache)
        raise UserError(moved) from None
    if not is_file(cache / "zarr.json"):
        _remove_orphans(cache)
        raise UserError(moved)


def _remove_orphans(cache: Path) -> None:
    """Remove chunks written at the old path while the cache was being moved; keep the folder if it has other files."""
    files = [path.relative_to(cache) for path in cache.rglob("*") if not path.is_dir()]
    if cache.is_dir() and all(CHUNKS in file.parts for file in files):
        remove(cache)
