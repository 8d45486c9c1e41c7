"""Ctrl-C in training: asked for at any instant, granted between two updates."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yield a question: was an interrupt asked for? A second Ctrl-C stops the hard way.

    An exception thrown into the middle of a backward pass can take the process down with it. Outside the main thread,
    where no signal arrives, and where interrupts are ignored, the answer is always no.
    """
    previous = signal.getsignal(signal.SIGINT)
    # a background job inherits SIGINT ignored, and is to be left alone
    if threading.current_thread() is not threading.main_thread() or previous in (None, signal.SIG_IGN):
        yield lambda: False
        return
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


def end_quietly(_worker: int) -> None:
    """Let a decoding process outlive a Ctrl-C, which reaches it too, and be silent if the training process is killed.

    The first is for the training process to answer. In the second case multiprocessing would tell the user, by
    `sys.excepthook` in a thread that lends memory, that nobody wants it any more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell = sys.excepthook

    def tell_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            tell(kind, error, trace)

    sys.excepthook = tell_others
