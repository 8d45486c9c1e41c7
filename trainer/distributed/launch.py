"""Launches several training processes, one per device, and watches them."""

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

from data_cache.callbacks import OnUpdate
from data_cache.errors import UsageError, UserError
from data_cache.system.environment import environment_defaults
from data_cache.system.signals import SIGNALS
from trainer.interrupt import interruptible

POLL, GRACE = 0.1, 10.0
"""Seconds between two checks of the processes, and seconds for the others to report once one has failed."""
_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
"""Without this, gloo listens on the network, at the address that the host name resolves to."""
_QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "PYTHONWARNINGS": "ignore:resource_tracker"}
"""PyTorch warns about batches that use all parameters, Python about leftovers of a killed process."""
Line = dict[str, float]


@dataclass
class _Rank:
    """A training process and its last message, which is its result or its error."""

    process: BaseProcess
    pipe: Connection
    result: Line | None = None
    error: UserError | str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None or self.process.exitcode not in (None, 0)

    def receive(self, on_update: OnUpdate) -> None:
        """Read all messages that the process has sent."""
        try:
            while self.pipe.poll():
                kind, value = self.pipe.recv()
                if kind == "update":
                    on_update(value)
                else:
                    setattr(self, kind, value)
        except (EOFError, ConnectionResetError):
            return


def launch_ranks(
    device: torch.device, count: int, work: Callable[..., Line], arguments: Sequence[Any], on_update: OnUpdate
) -> Line:
    """Call `work` in `count` processes of one group (`trainer.distributed.ranks`); returns rank 0's result.

    `work` receives `arguments`, an `on_update`, and a context that yields a function that returns whether an interrupt
    was received. `on_update` of rank 0 is forwarded to this process. It does not train, so that it can end processes
    that wait for a dead one. All processes have ended when this function returns or raises.

    Raises:
        UsageError: this machine has fewer GPUs, or `device` names a single GPU.
        UserError: a process raised it, or was killed.

    """
    if device.type == "cuda" and device.index is not None:
        raise UsageError(f"--device {device}: is one GPU, but --devices {count} needs {count}; pass --device cuda")
    if device.type == "cuda" and count > torch.cuda.device_count():
        raise UsageError(
            f"--devices {count}: {torch.cuda.device_count()} CUDA GPUs are visible; pass at most that many"
        )
    context = multiprocessing.get_context("spawn")
    ranks: list[_Rank] = []
    with tempfile.TemporaryDirectory() as folder, interruptible() as interrupted:
        try:
            with child_environment(**_QUIET):
                stop = context.Event()
            for number in range(count):
                receiver, sender = context.Pipe(duplex=False)
                job = (number, count, device.type, Path(folder) / "rendezvous", work, arguments, sender, stop)
                ranks.append(_Rank(context.Process(target=_run_rank, args=job), receiver))
                with child_environment(GLOO_SOCKET_IFNAME=_LOOPBACK, **_QUIET):
                    ranks[-1].process.start()
                sender.close()
            _watch(ranks, on_update, lambda: interrupted() and stop.set())
            return _outcome(ranks)
        finally:
            for rank in ranks:
                if rank.process.pid:
                    rank.process.kill()
                    rank.process.join()


def _watch(ranks: Sequence[_Rank], on_update: OnUpdate, check: Callable[[], Any]) -> None:
    """Forward messages until all processes have ended, or until `GRACE` seconds after the first failure."""
    deadline = float("inf")
    while time.monotonic() < deadline and any(rank.process.is_alive() for rank in ranks):
        # a decoding process keeps the pipe of its dead training process open, so only the timeout ends this wait
        wait([rank.pipe for rank in ranks if rank.process.is_alive()], POLL)
        for rank in ranks:
            rank.receive(on_update)
        check()
        if deadline == float("inf") and any(rank.failed for rank in ranks):
            deadline = time.monotonic() + GRACE
    for rank in ranks:
        rank.receive(on_update)


def _outcome(ranks: Sequence[_Rank]) -> Line:
    """Return the result of rank 0, or raise the failure that caused the others."""
    for rank in ranks:
        if isinstance(rank.error, UserError):
            raise rank.error
    for number, rank in enumerate(ranks):
        if rank.failed and rank.error is None:
            raise UserError(
                f"process {number} of {len(ranks)} was killed, perhaps because memory ran out; the newest checkpoint, "
                "if any, is kept: resume with `train --resume`"
            )
    for number, rank in enumerate(ranks):
        if rank.error is not None:
            raise RuntimeError(f"process {number} of {len(ranks)}:\n{rank.error}")
    assert ranks[0].result is not None
    return ranks[0].result


def _run_rank(
    number: int,
    count: int,
    kind: str,
    rendezvous: Path,
    work: Callable[..., Line],
    arguments: Sequence[Any],
    pipe: Connection,
    stop: Any,
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["LOCAL_RANK"] = str(number)  # selects Fabric's GPU, and keeps Fabric from launching processes
    torch.set_num_threads(max(1, torch.get_num_threads() // count))
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    if kind == "cuda":
        torch.cuda.set_device(number)
    try:
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        distributed.init_process_group(backend, f"file://{rendezvous}", rank=number, world_size=count)
        on_update = (lambda line: pipe.send(("update", line))) if number == 0 else (lambda _: None)
        pipe.send(("result", work(*arguments, on_update, nullcontext(stop.is_set))))
        distributed.destroy_process_group()
    except UserError as error:
        pipe.send(("error", error))
        sys.exit(1)
    except Exception:
        pipe.send(("error", traceback.format_exc()))
        sys.exit(1)


@contextmanager
def child_environment(**variables: str) -> Iterator[None]:
    """Set environment variables that the user has not set, and block interrupts, for processes started in the context.

    Ctrl-C and SIGTERM reach every process of a group, but only the watching parent handles them.
    """
    with environment_defaults(**variables):
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
