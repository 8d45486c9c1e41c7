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
        await asyncio.to_thread(self._check_exists)
        await Store._open(self)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value, as `LocalStore` does."""
        await asyncio.to_thread(self._make_folders, key)
        await super().set(key, value)

    def _make_folders(self, key: str) -> None:
        self._check_exists()
        for folder in reversed((self.root / key).relative_to(self.root).parents):
            if folder != Path():
                (self.root / folder).mkdir(exist_ok=True)

    def _check_exists(self) -> None:
        (self.root / "zarr.json").stat()


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
