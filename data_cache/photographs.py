"""The photographs a cache was made from: a cache holds none itself, but knows where they were."""

from pathlib import Path

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.store import Cache


def photographs(cache: Cache, root: Path | None) -> Dataset:
    """The dataset a cache was made from, below `root` or where it was. Raises UserError if it is another one."""
    about, recorded = cache.fingerprint["dataset"], cache.attributes["recorded"]
    where = root or (Path(recorded["root"]) if recorded["root"] else None)
    dataset = open_dataset(about["name"], where, about["split"], about["images"])
    if list(dataset.ids) != [str(name) for name in cache.group["image/id"][:]]:
        name = where or about["name"]
        raise UserError(f"{name}: not the images {cache.path} was made from; pass --root with the same dataset")
    return dataset
