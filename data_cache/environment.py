"""The environment that processes started meanwhile are born with."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment(**given: str) -> Iterator[None]:
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
