"""Where a cache's images come from: the dataset again, in the cache's order, and how it differs from the cache."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.store import Cache

READERS = 8
NAMED = 3


def photographs(cache: Cache, root: Path | None) -> Dataset:
    """The images of a cache in its order, below `root` or where they were; others that are there are left out.

    Raises UserError if one of them is missing, or the class names are not those of the cache.
    """
    about, recorded = cache.fingerprint["dataset"], cache.attributes["recorded"]
    where = root or (Path(recorded["root"]) if recorded["root"] else None)
    dataset = open_dataset(about["name"], where, about["split"], None if where else about["images"])
    place, ids = where or about["name"], cache.ids()
    if gone := set(ids) - set(dataset.ids):
        raise UserError(
            f"{place}: not the images {cache.path} was made from ({names(sorted(gone))} missing); pass --root with "
            "the same dataset, or precompute again"
        )
    if dataset.classes != cache.texts().classes:
        raise UserError(
            f"{place}: its class names or their order are not those {cache.path} was made with; restore them, or "
            "precompute again into another --cache"
        )
    return ordered(dataset, ids)


def ordered(dataset: Dataset, ids: Sequence[str]) -> Dataset:
    """The images of a dataset that are called so, in this order."""
    place = {name: index for index, name in enumerate(dataset.ids)}
    return dataset.picked([place[name] for name in ids])


def changed(cache: Cache, dataset: Dataset) -> list[str]:
    """The images of a cache that are no longer what was encoded: their files, or their label maps', are others.

    Reads the files of every image that worked. A drawn dataset has none: its fingerprint stands for it.
    """
    if dataset.root is None:
        return []
    stored: dict[int, tuple[str, str]] = {}
    for record in cache.records():  # what a shard that is not done holds may be half of something
        span = cache.layout.span(record.shard)
        stored |= {i: digest for i, digest in enumerate(cache.digests(span), span.start) if digest[0]}

    def differs(index: int) -> bool:
        try:
            return dataset.digest(index) != stored[index]
        except UserError:
            return True

    known = list(stored)
    with ThreadPoolExecutor(READERS) as pool:
        return [dataset.ids[i] for i, other in zip(known, pool.map(differs, known), strict=True) if other]


def names(some: Sequence[str]) -> str:
    """The first few of a list of names."""
    more = len(some) - NAMED
    return ", ".join(some[:NAMED]) + (f" and {more} more" if more > 0 else "")
