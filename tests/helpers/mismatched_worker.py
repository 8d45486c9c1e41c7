"""Preloaded by a worker to make it lack what $CLIPTEACHER_TEST_LACKS names: torch's version, clipteacher, or files."""

import importlib.metadata
import os
import sys
from pathlib import Path


def without_version(read, hidden):
    return lambda name: "1.0" if name == hidden else read(name)


def without_files(read, hidden):
    def without(path):
        if path.is_relative_to(hidden):
            raise FileNotFoundError(path)
        return read(path)

    return without


LACKS = os.environ["CLIPTEACHER_TEST_LACKS"]
if LACKS == "torch":
    importlib.metadata.version = without_version(importlib.metadata.version, LACKS)
elif LACKS == "clipteacher":
    sys.modules["pipeline"] = None
else:
    from pipeline.dask import cluster as scheduler

    scheduler.FILE_TIMEOUT = 0.1  # the files will not appear
    Path.read_bytes = without_files(Path.read_bytes, LACKS)
