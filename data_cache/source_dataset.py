"""The dataset that a cache was made from: reopened in the cache's order, and compared with the cache."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.messages import first_names
from data_cache.reader import Cache
from data_cache.sample import check_all_unchanged
from data_cache.system.files import is_folder


def open_source_dataset(cache: Cache, root: Path | None) -> Dataset:
    """Open the dataset of a cache, with the cache's images in the cache's order and without any others.

    `root` is the current folder of the dataset; None is the folder that the cache was made from.

    Raises UserError if an image is missing, or the class names are not those of the cache.
    """
    recorded = cache.fingerprint["dataset"]
    root = root or recorded_root(cache)
    dataset = open_dataset(recorded["name"], root, recorded["split"], None if root else recorded["images"])
    where, ids = root or recorded["name"], cache.ids()
    if missing := set(ids) - set(dataset.ids):
        raise UserError(
            f"{where}: not the images {cache.path} was made from ({first_names(sorted(missing))} missing); pass --root "
            "with the same dataset, or precompute again"
        )
    if dataset.classes != cache.texts().classes:
        raise UserError(
            f"{where}: its class names or their order are not those {cache.path} was made with; restore them, or "
            "precompute again into another --cache"
        )
    return select_ids(dataset, ids)


def recorded_root(cache: Cache) -> Path | None:
    """The dataset's folder when the cache was made; None for a synthetic dataset."""
    root = cache.attributes["recorded"]["root"]
    return Path(root) if root else None


def select_ids(dataset: Dataset, ids: Sequence[str]) -> Dataset:
    """The images of a dataset with these ids, in this order."""
    index = {name: i for i, name in enumerate(dataset.ids)}
    return dataset.subset([index[name] for name in ids])


def check_images_unchanged(cache: Cache, dataset: Dataset) -> None:
    """Compare the files of all encoded images with the cache. Raises UserError, as `check_all_unchanged` does."""
    cached: dict[int, tuple[str, str]] = {}
    for record in cache.records():  # unfinished shards may be partly written
        span = cache.layout.span(record.shard)
        cached |= {i: digest for i, digest in enumerate(cache.digests(span), span.start) if digest[0]}
    check_all_unchanged(dataset, cached)


class SourceDataset:
    """The dataset of a cache, opened on first use; a failure to open it is remembered."""

    def __init__(self, cache: Cache, root: Path | None) -> None:
        self._cache, self.root = cache, root or recorded_root(cache)

    def open(self) -> Dataset:
        """Open the dataset now. Raises UserError, as `open_source_dataset` does."""
        self._opened = open_source_dataset(self._cache, self.root)
        return self._opened

    @property
    def location(self) -> str:
        """The dataset's folder, or why it has none, without opening the dataset."""
        if self.root is None:
            return "rendered on demand"
        try:
            exists = is_folder(self.root)
        except UserError as error:
            return str(error)
        return str(self.root) if exists else f"not in {self.root}; open_cache(path, root=DIR) looks elsewhere"

    @property
    def dataset(self) -> Dataset:
        """The dataset. Raises UserError if it is missing or does not match the cache."""
        if isinstance(self._opened, UserError):
            raise self._opened
        return self._opened

    @cached_property
    def _opened(self) -> Dataset | UserError:
        try:
            if self.root and not is_folder(self.root):
                return UserError(self.location)
            return open_source_dataset(self._cache, self.root)
        except UserError as error:
            return error
