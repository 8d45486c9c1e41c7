"""Signals that end a process: SIGINT (Ctrl-C), and SIGTERM as sent by Slurm, Docker and `timeout`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from data_cache.errors import InterruptError

DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
SIGNALS = tuple(DEFAULTS)


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
    if threading.current_thread() is not threading.main_thread():
        handled = []
    received = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal received
        received = True
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, interrupt)
    try:
        yield
    except Exception as error:
        if received and not isinstance(error, InterruptError):
            raise KeyboardInterrupt from error
        raise
    else:
        if received:
            raise KeyboardInterrupt
    finally:
        for number in handled:
            signal.signal(number, DEFAULTS[number])
