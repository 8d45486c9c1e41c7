"""A cache that is moved or removed while it is written: nothing is made at its old place, and its writer says so."""

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
"""The folder that Zarr puts the chunks of an array into."""


class RootedStore(LocalStore):
    """A folder as a Zarr store that makes folders in it, and never the folder itself. Raises FileNotFoundError then."""

    async def _open(self, *, mode: str | None = None) -> None:
        await asyncio.to_thread(self._check_there)
        await Store._open(self)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value, as `LocalStore` does."""
        await asyncio.to_thread(self._make_folders, key)
        await super().set(key, value)

    def _make_folders(self, key: str) -> None:
        self._check_there()
        for folder in reversed((self.root / key).relative_to(self.root).parents):
            if folder != Path():
                (self.root / folder).mkdir(exist_ok=True)

    def _check_there(self) -> None:
        (self.root / "zarr.json").stat()


@contextmanager
def in_its_place(cache: Path) -> Iterator[None]:
    """Raise UserError if the cache is not where it was when the block ends or fails; then that is why."""
    gone = f"{cache}: was moved or removed while it was written; rerun the command with its new place to resume"
    try:
        yield
    except Exception:
        if is_file(cache / "zarr.json"):
            raise
        _remove_orphans(cache)
        raise UserError(gone) from None
    if not is_file(cache / "zarr.json"):
        _remove_orphans(cache)
        raise UserError(gone)


def _remove_orphans(cache: Path) -> None:
    """Remove what was written at a cache's old place in the instant in which it went: chunks, and nothing else."""
    files = [path.relative_to(cache) for path in cache.rglob("*") if not path.is_dir()]
    if cache.is_dir() and all(CHUNKS in file.parts for file in files):
        remove(cache)
