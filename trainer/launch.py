"""Several processes that train together, a device each, and the watch kept over them."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from data_cache.environment import environment
from data_cache.errors import UsageError, UserError
from trainer.interrupt import interruptible

POLL, GRACE = 0.1, 10.0
"""Seconds between two looks at the processes, and those the others have to tell their own end once one has failed."""
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""Gloo would listen on the network, under whatever address the machine's name has."""
_QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore:resource_tracker"}
"""Torch warns of batches in which all parameters are used, Python of what a killed process left behind."""
Line = dict[str, float]


@dataclass
class _Rank:
    """A process seen from outside: what it sent last decides how it ended."""

    process: BaseProcess
    pipe: Connection
    result: Line | None = None
    error: UserError | str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None or self.process.exitcode not in (None, 0)

    def hear(self, tell: Callable[[Line], None]) -> None:
        """Take in what it has sent."""
        try:
            while self.pipe.poll():
                kind, value = self.pipe.recv()
                if kind == "told":
                    tell(value)
                else:
                    setattr(self, kind, value)
        except (EOFError, ConnectionResetError):
            return


def together(
    device: torch.device, count: int, work: Callable[..., Line], arguments: Sequence[Any], tell: Callable[[Line], None]
) -> Line:
    """Call `work` in `count` processes that hear of each other (`trainer.ranks`); returns what that of rank 0 does.

    `work` gets `arguments`, then its `tell` and a context that yields the question whether an interrupt was asked for.
    `tell` hears what rank 0 told its own. However this ends, no process is left. This process is none of them, so that
    it can end those that wait for a dead one.

    Raises:
        UsageError: this machine has fewer GPUs, or `device` is one of them.
        UserError: what a process raised, or one was killed.

    """
    if device.type == "cuda" and device.index is not None:
        raise UsageError(f"--device {device}: is one GPU, --devices {count} wants {count}; pass --device cuda")
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise UsageError(f"--devices {count}: {torch.cuda.device_count()} CUDA GPUs are visible; pass at most so many")
    context = multiprocessing.get_context("spawn")
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory() as folder, interruptible() as interrupted:
        try:
            with _born_with(**_QUIET):
                stop = context.Event()
            for number in range(count):
                ours, theirs = context.Pipe(duplex=False)
                job = (number, count, device.type, Path(folder) / "met", work, arguments, theirs, stop)
                ranks.append(_Rank(context.Process(target=_take_part, args=job), ours))
                with _born_with(GLOO_SOCKET_IFNAME=_LOOPBACK, **_QUIET):
                    ranks[-1].process.start()
                theirs.close()
            _watch(ranks, tell, lambda: stop.set() if interrupted() else None)
            return _outcome(ranks)
        finally:
            for rank in ranks:
                if rank.process.pid:
                    rank.process.kill()
                    rank.process.join()


def _watch(ranks: Sequence[_Rank], tell: Callable[[Line], None], look: Callable[[], None]) -> None:
    deadline = float("inf")
    while time.monotonic() < deadline and any(rank.process.is_alive() for rank in ranks):
        # a decoding process keeps a dead one's pipes open, so that time alone ends this wait
        wait([rank.pipe for rank in ranks if rank.process.is_alive()], POLL)
        for rank in ranks:
            rank.hear(tell)
        look()
        if deadline == float("inf") and any(rank.failed for rank in ranks):
            deadline = time.monotonic() + GRACE
    for rank in ranks:
        rank.hear(tell)


def _outcome(ranks: Sequence[_Rank]) -> Line:
    """What rank 0 returned; of several failures the one that is the cause of the others."""
    for rank in ranks:
        if isinstance(rank.error, UserError):
            raise rank.error
    for number, rank in enumerate(ranks):
        if rank.failed and rank.error is None:
            raise UserError(
                f"process {number} of {len(ranks)} was ended from outside, perhaps for want of memory; the newest "
                "checkpoint, if any, is kept: `train --resume` goes on"
            )
    for number, rank in enumerate(ranks):
        if rank.error is not None:
            raise RuntimeError(f"process {number} of {len(ranks)}:\n{rank.error}")
    assert ranks[0].result is not None
    return ranks[0].result


def _take_part(
    number: int,
    count: int,
    kind: str,
    met: Path,
    work: Callable[..., Line],
    arguments: Sequence[Any],
    pipe: Connection,
    stop: Any,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["LOCAL_RANK"] = str(number)  # by which Fabric chooses the GPU, and starts no processes of its own
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if kind == "cuda":
        torch.cuda.set_device(number)
    try:
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        distributed.init_process_group(backend, f"file://{met}", rank=number, world_size=count)
        tell = (lambda line: pipe.send(("told", line))) if number == 0 else (lambda _: None)
        pipe.send(("result", work(*arguments, tell, nullcontext(stop.is_set))))
        distributed.destroy_process_group()
    except UserError as error:
        pipe.send(("error", error))
        sys.exit(1)
    except Exception:
        pipe.send(("error", traceback.format_exc()))
        sys.exit(1)


@contextmanager
def _born_with(**given: str) -> Iterator[None]:
    """Processes started meanwhile find this in their environment, unless the user's own says otherwise.

    And they are deaf to Ctrl-C, which reaches every process of a terminal: the one that watches answers it.
    """
    with environment(**given):
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
