"""Batches, prefetched by decoding processes that never print a traceback of their own."""

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
from trainer.memory import SHM_ADVICE
from trainer.sampler import BatchSampler, Stream

WORKER_DIED = "DataLoader worker (pid"
"""How PyTorch's error for a dead decoding process begins (tests/trainer/test_memory.py kills one)."""

START_METHOD = "fork" if hasattr(signal, "sigwaitinfo") else None
"""How decoding processes start; None is the platform's default, for macOS.

A forked process has one thread, in which `ignore_interrupts` blocks SIGTERM. A process started in another way (the
default from Python 3.14 on) already has the threads of its BLAS library, and SIGTERM would reach one of those.
"""


def batches(views: ViewDataset, stream: Stream, first: int, last: int, workers: int) -> Iterator[Batch]:
    """Yield the batches of updates `first` to `last` - 1, prefetched by `workers` processes.

    With several training processes, each gets its own slice of every batch.

    Raises UserError, always between two batches: an image cannot be read, a decoding process was killed, or shared
    memory is too small for a batch.
    """
    loader = DataLoader(
        views,
        batch_sampler=BatchSampler(stream, first, last),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=ignore_interrupts,
        multiprocessing_context=START_METHOD if workers else None,
        # not the global generator: it belongs to the model and must resume bit for bit
        generator=torch.Generator().manual_seed(0),
    )
    with _preserve_sigchld_handler():
        prefetched = iter(loader)
    while True:
        try:
            batch = next(prefetched, None)
        except (RuntimeError, ConnectionError, EOFError) as error:
            # a process that dies while it sends a batch breaks the connection
            if isinstance(error, RuntimeError) and WORKER_DIED not in str(error):
                raise
            raise UserError(
                "a decoding process was killed, most likely because memory ran out; pass fewer --workers, or "
                "--workers 0"
            ) from None
        if batch is None:
            return
        if isinstance(batch, UserError):
            raise batch
        yield batch


@contextmanager
def _preserve_sigchld_handler() -> Iterator[None]:
    """Restore the SIGCHLD handler that creating a DataLoader iterator replaces.

    PyTorch's handler raises in the middle of an update when a decoding process dies. The check that PyTorch makes while
    it waits for a batch is enough.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)


def _collate(items: list) -> Batch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, label, image, view = zip(*items, strict=True)
    batch = Batch(torch.stack(images), torch.stack(label), torch.tensor(image), torch.tensor(view))
    if get_worker_info():
        try:
            # if left to the queue's thread, an error would only be printed, and the batch would never arrive
            for tensor in batch:
                tensor.share_memory_()
        except RuntimeError as error:
            return UserError(f"/dev/shm: has no room for a batch ({one_line(error)}); {SHM_ADVICE}")
    return batch


def ignore_interrupts(_worker: int) -> None:
    """Make a decoding process ignore Ctrl-C, ignore SIGTERM unless its training process sends it, and die silently.

    The process must have a single thread (`START_METHOD`). By default, a background thread of multiprocessing reports
    through `sys.excepthook` that the training process is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # missing on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_parent_sigterm, daemon=True).start()
    default_hook = sys.excepthook

    def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            default_hook(kind, error, trace)

    sys.excepthook = excepthook


def _exit_on_parent_sigterm() -> None:
    """Exit on a SIGTERM from the training process; ignore one from any other process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
