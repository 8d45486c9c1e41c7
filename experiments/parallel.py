"""Runs trainings in parallel processes, each of which saves its last update when interrupted."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from data_cache.errors import InterruptError, UserError

Result = TypeVar("Result")


def run_parallel(runs: Sequence[Callable[[], Result]], jobs: int) -> Iterator[tuple[int, Result]]:
    """Call functions in `jobs` processes of one thread each; yields index and result of each once it has ended.

    They run in the main thread of their process, where a training receives signals. Ctrl-C and SIGTERM, to this
    process or to all of its group, end all of them.

    Raises:
        InterruptError: this process was interrupted.
        UserError: one of them raised it, or was killed.

    """
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, context, _start)
    try:
        futures = {executor.submit(run): index for index, run in enumerate(runs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a training process was killed, perhaps because memory ran out; rerun the same command, with fewer --jobs, "
            "to resume"
        ) from None
    except KeyboardInterrupt:
        raise InterruptError(
            "interrupted; the last update of each training is saved; rerun the same command to resume"
        ) from None
    finally:
        for process in multiprocessing.active_children():
            process.terminate()
        executor.shutdown(cancel_futures=True)


def _start() -> None:
    """Prepare a process. It ignores Ctrl-C, which a terminal sends to all processes: its parent sends SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
