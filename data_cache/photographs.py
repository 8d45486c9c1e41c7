"""The photographs of a cache, to look at, as far as they are still there and still the same."""

from functools import cached_property
from pathlib import Path

from jaxtyping import UInt8
from numpy import ndarray

from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.source import photographs
from data_cache.store import Cache


def recorded_root(cache: Cache) -> Path | None:
    """Where a cache's photographs were when it was made; None if they are drawn."""
    root = cache.attributes["recorded"]["root"]
    return Path(root) if root else None


class Photographs:
    """A cache's photographs to look at, opened when first asked for; that they are gone is found out once."""

    def __init__(self, cache: Cache, root: Path | None) -> None:
        self._cache, self.root = cache, root or recorded_root(cache)

    def load(
        self, image: int, digest: tuple[str, str] | None
    ) -> tuple[UInt8[ndarray, "height width 3"], UInt8[ndarray, "height width"] | None]:
        """A photograph and its label map (class ids, 255 for void; None if it has none).

        `digest` holds their hashes when they were cached, if that is known. Raises UserError if they are not there,
        unreadable or no longer the same.
        """
        dataset = self.dataset
        if digest and dataset.digest(image) != digest:
            raise UserError(f"{dataset.path(image)}: the image or its label map changed since it was cached")
        return dataset.load(image)

    @property
    def where(self) -> str:
        """Where they are, or would be; nothing is opened to tell."""
        if self.root is None:
            return "drawn when they are asked for"
        return (
            str(self.root) if self.root.is_dir() else f"not in {self.root}; open_cache(path, root=DIR) looks elsewhere"
        )

    @property
    def dataset(self) -> Dataset:
        """The dataset. Raises UserError if it is not there, or another one."""
        if isinstance(self._found, UserError):
            raise self._found
        return self._found

    @cached_property
    def _found(self) -> Dataset | UserError:
        if self.root and not self.root.is_dir():
            return UserError(self.where)
        try:
            return photographs(self._cache, self.root)
        except UserError as error:
            return error
