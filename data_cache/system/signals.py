"""Signals that end a process: SIGINT (Ctrl-C), and SIGTERM as sent by Slurm, Docker and `timeout`."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from data_cache.errors import InterruptError

DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
SIGNALS = tuple(DEFAULTS)
Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def handling(numbers: Iterable[int], handler: Handler) -> Iterator[None]:
    """Handle signals within the block, and restore the previous handlers after it.

    Does nothing outside the main thread, which alone receives signals.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in numbers} if is_main else {}
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGINT and on the first SIGTERM within the block.

    Further SIGTERMs are ignored: `timeout` sends two. If the block ends with another error after a signal,
    KeyboardInterrupt is raised instead, because libraries can replace it: while torch makes a tensor from the bytes of
    an intact file, an interrupt becomes an error that blames the file. InterruptError stays. If the block ends as if
    nothing had happened, KeyboardInterrupt is also raised: Python drops exceptions in finalizers.

    Does nothing outside the main thread. A signal that is ignored or already handled stays so.
    """
    handled = [number for number, default in DEFAULTS.items() if signal.getsignal(number) is default]
    received = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        with handling(handled, interrupt):
            yield
    except Exception as error:
        if received and not isinstance(error, InterruptError):
            raise KeyboardInterrupt from error
        raise
    else:
        if received:
            raise KeyboardInterrupt
