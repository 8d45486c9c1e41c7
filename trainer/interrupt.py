"""Ctrl-C and SIGTERM in training: received at any time, handled between two updates."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from data_cache.system.signals import SIGNALS, handling


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether an interrupt was received. A second Ctrl-C stops at once, SIGTERM never.

    An exception raised in the middle of a backward pass can crash the process. If the block ends as if nothing had
    happened, because the interrupt came too late, the signal is passed on to the previous handler: what follows a
    training, such as its evaluation, must not go on. In a thread other than the main one, which receives no signals,
    and where interrupts are ignored, the function always returns False.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    interrupted, received = threading.Event(), []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        interrupted.set()
        if number == signal.SIGINT:  # not SIGTERM, which `timeout` sends twice
            signal.signal(number, handlers[number])

    # a background job inherits SIGINT as ignored, which must stay so
    with handling((number for number, one in handlers.items() if one not in (None, signal.SIG_IGN)), handle):
        yield interrupted.is_set
    if received:
        signal.raise_signal(received[0])
