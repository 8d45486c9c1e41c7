"""Ctrl-C and SIGTERM in training: received at any moment, answered between two updates."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from data_cache.system.signals import SIGNALS


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether an interrupt was received. A second Ctrl-C stops at once; SIGTERM never does.

    An exception thrown into the middle of a backward pass can take the process down with it. Outside the main thread,
    where no signal arrives, and where interrupts are ignored, the function always returns False.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    received = threading.Event()

    def receive(number: int, _frame: FrameType | None) -> None:
        received.set()
        if number == signal.SIGINT:  # `timeout` sends SIGTERM twice
            signal.signal(number, before[number])

    # a background job inherits SIGINT as ignored, and must be left alone
    handled = [number for number, handler in before.items() if handler not in (None, signal.SIG_IGN)]
    if threading.current_thread() is not threading.main_thread():
        handled = []
    for number in handled:
        signal.signal(number, receive)
    try:
        yield received.is_set
    finally:
        for number in handled:
            signal.signal(number, before[number])
