"""Default paths of caches and runs."""

import os
from pathlib import Path

from data_cache.errors import UsageError


def cache_folder() -> Path:
    """`$CLIPTEACHER_CACHE`, else `data_cache` below the working directory."""
    return Path(os.environ.get("CLIPTEACHER_CACHE", "data_cache"))


def only_cache() -> Path:
    """The only cache in the folder of caches. Raises UsageError if none exists, or several do."""
    caches = sorted(cache_folder().glob("*.zarr"))
    if len(caches) == 1:
        return caches[0]
    if not caches:
        raise UsageError(f"no cache in {cache_folder()}: run `precompute` first, or pass --cache PATH")
    raise UsageError(f"several caches: pass --cache with one of {', '.join(map(str, caches))}")


def run_folder(out: Path | None, cache: Path | None) -> Path:
    """`out`, else runs/<name of the cache>."""
    return out or Path("runs") / (cache or only_cache()).name.removesuffix(".zarr")
