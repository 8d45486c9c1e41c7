"""Where commands put their files unless an option says otherwise (docs/files.md).

Caches are `data_cache/NAME.zarr`. Everything else goes into `runs/NAME`, the folder of the run; NAME is that of the
cache. Files made from a student go into the folder of its run, wherever that is.
"""

import os
from pathlib import Path

from data_cache.errors import UsageError

RUNS = Path("runs")
"""The folder of runs, below the working directory."""
FIGURES, PREDICTED, REPORT, GRAPH = "figures", "predictions", "report.html", "student.onnx"
"""What `show`, `predict`, `report` and `export` write into the folder of a run."""


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


def run_folder(cache: Path) -> Path:
    """The folder of the run that `train` makes from a cache: runs/<name of the cache>."""
    named = cache if cache.name.strip(".") else cache.resolve()
    return RUNS / named.name.removesuffix(".zarr")


def figure_file(run: Path, figure: str) -> Path:
    """The file of a figure in the folder of a run."""
    return run / FIGURES / f"{figure}.png"
