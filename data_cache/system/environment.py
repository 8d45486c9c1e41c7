"""The environment that processes started meanwhile are born with, and how this one keeps its memory."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": (-3, 2**31 - 1),
    "MALLOC_TRIM_THRESHOLD_": (-1, 2**31 - 1),
    "MALLOC_ARENA_MAX": (-8, 1),
}
"""What glibc calls its settings in the environment, their numbers in `mallopt`, and their values."""


@contextmanager
def environment_defaults(**given: str) -> Iterator[None]:
    """Variables for a while, where the user's own do not say otherwise; then all is as before, whoever changed it."""
    before = dict(os.environ)
    os.environ.update(given | before)
    try:
        yield
    finally:
        # never empty, not for a moment: other threads read it
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that is freed, for whoever asks next, and share it among threads.

    By itself it gives a layer's activations back to the system and asks for the next layer's anew, and the system
    hands out pages one by one: up to half of the time of a network on a CPU (`benchmarks/kept_memory.py`). Does
    nothing where the user's environment has settings of its own, and with other C libraries.
    """
    if "GLIBC_TUNABLES" in os.environ or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    for name, (number, value) in MALLOC_SETTINGS.items():
        if name not in os.environ:
            libc.mallopt(number, value)
