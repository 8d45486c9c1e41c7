"""Changes of the state of the whole process, such as the level of logging, made and undone by any number of threads."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import wraps
from threading import Lock, RLock

_SEEDING = RLock()


def shared(context: Callable[[], AbstractContextManager[None]]) -> Callable[[], AbstractContextManager[None]]:
    """Let several threads be in a context at once: the first to enter makes the change, the last to leave undoes it.

    Without this, a thread that enters later takes the changed state for the original one, and restores it for good.
    """
    lock, inside, undo = Lock(), 0, ExitStack()

    @wraps(context)
    @contextmanager
    def entered() -> Iterator[None]:
        nonlocal inside
        with lock:
            if not inside:
                undo.enter_context(context())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if not inside:
                    undo.close()

    return entered


@shared
@contextmanager
def quiet_logging() -> Iterator[None]:
    """Silence the logs of libraries, which repeat what our error messages say."""
    # `logging` has no public getter for the level
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(previous)


@shared
@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Silence Python's warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw reproducible random weights within, and leave PyTorch's CPU generator as it was.

    One thread at a time, since all draw from the same generator; what another thread draws meanwhile without this is
    not reproducible.
    """
    import torch

    with _SEEDING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
