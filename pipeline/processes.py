"""Dask on this machine: one worker inside this process, or several in processes of their own."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import dask
import torch
from dask.distributed import Client, LocalCluster, WorkerPlugin

from data_cache.environment import KEEPING, environment

TASKS = 2
"""Shards that a worker has at hand at once: while one has CLIP, the other is decoded before it or written after it."""
LOOPBACK = "127.0.0.1:0"
NAME = "CUDA_VISIBLE_DEVICES"


class LeaveInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal: who started the workers answers it, and stops them."""

    name = "clipteacher-interrupts"

    def setup(self, worker: Any) -> None:
        """Called by Dask in the worker's process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class OneGPUEach(LocalCluster):
    """Worker processes that each see a GPU of their own, also when one is started again."""

    def __init__(self, gpus: Sequence[str], **options: Any) -> None:
        self._gpus = list(gpus)
        super().__init__(n_workers=0, **options)
        self.scale(len(gpus))
        self.sync(self._correct_state)

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """As Dask wants it: a name and how to start the worker."""
        (number,) = super().new_worker_spec()
        options = {**self.new_spec["options"], "env": {NAME: self._gpus[number]}}
        return {number: {**self.new_spec, "options": options}}


def visible_gpus() -> tuple[str, ...]:
    """What CUDA_VISIBLE_DEVICES calls each GPU that this process sees: numbers, or names where the user gave such."""
    count, named = torch.cuda.device_count(), os.environ.get(NAME, "")
    names = [name.strip() for name in named.split(",")] if named.strip() else list(map(str, range(count)))
    return tuple(names[:count])


@contextmanager
def local_client(workers: int, processes: bool, gpus: Sequence[str] = (), tasks: int = TASKS) -> Iterator[Client]:
    """So many workers, in this process or in their own, which share the cores; one a GPU if given some.

    Nothing is served but to this machine, and the environment is as it was afterwards. Processes have a dashboard if
    bokeh is installed.
    """
    # Dask would serve HTTP to the whole network: keep what it insists on to this machine, and empty
    sides = ("worker",) if processes and find_spec("bokeh") else ("scheduler", "worker")
    quiet: dict[str, Any] = {f"distributed.{side}.http.routes": [] for side in sides}
    quiet["distributed.worker.profile.enabled"] = False  # it grows with the run: 100 bytes a frame it has seen
    threads = max(1, len(os.sched_getaffinity(0)) // workers if hasattr(os, "sched_getaffinity") else 1)
    born_with = "distributed.nanny.pre-spawn-environ"
    quiet |= {f"{born_with}.{library}_NUM_THREADS": threads for library in ("OMP", "MKL", "OPENBLAS")}
    if not gpus:
        quiet |= {f"{born_with}.{name}": value for name, (_, value) in KEEPING.items()}
    with (
        environment(),  # Dask leaves its workers' OMP_NUM_THREADS behind in this process, for all it starts later
        dask.config.set(quiet),
        _cluster(workers, processes, gpus[:workers], tasks) as cluster,
        Client(cluster) as client,
    ):
        if processes:
            client.register_plugin(LeaveInterrupts())
        yield client


def dashboard(client: Client) -> str | None:
    """Where to watch the worker processes of this machine, if anywhere."""
    there = isinstance(client.cluster, LocalCluster) and client.cluster.processes and find_spec("bokeh")
    return client.dashboard_link if there else None


def _cluster(workers: int, processes: bool, gpus: Sequence[str], tasks: int) -> LocalCluster:
    options: dict[str, Any] = {
        "threads_per_worker": tasks,
        "dashboard_address": LOOPBACK,
        "worker_dashboard_address": LOOPBACK,
        "memory_limit": 0,
        "silence_logs": logging.CRITICAL,
    }
    if not gpus:
        return LocalCluster(n_workers=workers, processes=processes, **options)
    if not find_spec("dask_cuda"):
        return OneGPUEach(gpus, **options)
    from dask_cuda import LocalCUDACluster  # also ties each worker to the cores that are near its GPU

    return LocalCUDACluster(CUDA_VISIBLE_DEVICES=list(gpus), n_workers=len(gpus), **options)
