"""A cache to be published, packed into one file without its dense tokens."""

from pathlib import Path

from data_cache.archive import pack, packed_files
from data_cache.callbacks import ProgressBar
from data_cache.reader import Cache
from data_cache.system.files import check_free_space
from experiments.sharing.manifest import ARCHIVE, Content, Manifest
from experiments.sharing.model_card import cache_card
from experiments.sharing.terms import Terms


class CacheBundle:
    """A finished cache without its dense tokens, as one file."""

    def __init__(self, path: Path) -> None:
        self._cache = Cache(path)
        for name in self._cache.masks:
            self._cache.check_done(name)

    def files(self, folder: Path, progress_bar: ProgressBar) -> dict[str, Content]:
        """Pack the cache. Raises UserError if it is damaged, or the disk is too small."""
        sizes = [size for size, _ in packed_files(self._cache).values()]
        check_free_space(folder.parent, "packing the cache", sum(sizes), "set TMPDIR to a folder on a larger disk")
        with progress_bar("packing", len(sizes), "files") as advance:
            pack(self._cache, folder / ARCHIVE, advance)
        return {ARCHIVE: folder / ARCHIVE}

    def check(self, manifest: Manifest) -> None:
        """Nothing: `pack` compares every file with its record."""

    def page(self, name: str, url: str, terms: Terms) -> str:
        """The content of README.md."""
        return cache_card(self._cache, name, url, terms)
