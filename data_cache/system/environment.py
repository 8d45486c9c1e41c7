"""Environment variables for child processes, and glibc's memory settings."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""glibc's environment variables, with the parameter number in `mallopt` and the value of each."""


@contextmanager
def environment_defaults(**defaults: str) -> Iterator[None]:
    """Set environment variables that the user has not set, and restore the whole environment afterwards."""
    before = dict(os.environ)
    os.environ.update(defaults | before)
    try:
        yield
    finally:
        # other threads may read the environment, so it must never be empty
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for reuse and share it among threads.

    By default glibc returns a layer's activations to the system and requests memory for the next layer, page fault by
    page fault. That takes up to half of a network's time on a CPU (`benchmarks/kept_memory.py`). Settings in the user's
    environment take precedence; other C libraries are left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for name, (number, value) in MALLOC_SETTINGS.items():
        if name not in os.environ:
            libc.mallopt(number, value)


def package_files(package: str, pattern: str) -> list[Path]:
    """The files of an installed package that match a pattern; the package is not imported."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return [file for folder in folders or () for file in Path(folder).glob(pattern)]
