"""Batches decoded ahead by other processes, which end without a traceback whatever happens to them."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch.utils.data import DataLoader, get_worker_info

from data_cache.errors import UserError, one_line
from trainer.data import Batch, ViewDataset
from trainer.memory import SHARED_CURE
from trainer.sampler import BatchSampler, Stream

LOST = "DataLoader worker (pid"
"""The beginning of PyTorch's error for a decoding process that is gone (tests/trainer/test_memory.py kills one)."""

FORK = "fork" if hasattr(signal, "sigwaitinfo") else None
"""How decoding processes start; `None`, the platform's own way, on macOS.

A forked process has one thread, and `ignore_interrupts` blocks SIGTERM in it. A process that starts anew (the default
from Python 3.14 on) has the threads of its BLAS library by then, and SIGTERM would reach one of those.
"""


def batches(views: ViewDataset, stream: Stream, first: int, last: int, workers: int) -> Iterator[Batch]:
    """The batches of updates `first` to `last` - 1, decoded ahead by `workers` processes.

    With several training processes each gets its own part of every batch.

    Raises UserError, always between two batches, for an image that cannot be read, a decoding process that was killed,
    or too little shared memory to pass batches on.
    """
    loader = DataLoader(
        views,
        batch_sampler=BatchSampler(stream, first, last),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_interrupts,
        multiprocessing_context=FORK if workers else None,
        # a generator of its own: the global one belongs to the model and must resume bit for bit
        generator=torch.Generator().manual_seed(0),
    )
    with _child_exit_handler_kept():
        ahead = iter(loader)
    while True:
        try:
            item = next(ahead, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # a process that dies while it passes a batch on breaks the connection
            if isinstance(error, RuntimeError) and LOST not in str(error):
                raise
            raise UserError(
                "a decoding process was killed, most likely because memory ran out; pass fewer --workers, or "
                "--workers 0"
            ) from None
        if item is None:
            return
        if isinstance(item, UserError):
            raise item
        yield item


@contextmanager
def _child_exit_handler_kept() -> Iterator[None]:
    """Restore the SIGCHLD handler that a loader created within replaces.

    Its own would raise out of a signal handler, in the middle of an update, when a decoding process ends. A loader also
    checks its processes whenever it waits for a batch, which is enough.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _collate(items: list) -> Batch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, seen, image, view = zip(*items, strict=True)
    batch = Batch(torch.stack(images), torch.stack(seen), torch.tensor(image), torch.tensor(view))
    if get_worker_info():
        try:
            # otherwise a thread of the queue does it, prints its error, and the batch is waited for in vain
            for part in batch:
                part.share_memory_()
        except RuntimeError as error:
            return UserError(f"/dev/shm: has no room for a batch ({one_line(error)}); {SHARED_CURE}")
    return batch


def ignore_interrupts(_worker: int) -> None:
    """Let a decoding process ignore Ctrl-C and SIGTERM unless its training process sends them, and die silently.

    The process must have a single thread (`FORK`). Without this function, multiprocessing would report from a
    background thread (through `sys.excepthook`) that the training process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # missing on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()
    report = sys.excepthook

    def report_others(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            report(kind, error, trace)

    sys.excepthook = report_others


def _obey_parent() -> None:
    """Exit on a SIGTERM from the training process, and on nobody else's."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
