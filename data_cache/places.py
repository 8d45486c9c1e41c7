"""Where caches lie unless a path is given."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$CLIPTEACHER_CACHE`, else `data_cache` below the working directory."""
    return Path(os.environ.get("CLIPTEACHER_CACHE", "data_cache"))
