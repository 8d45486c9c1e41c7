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

from data_cache.system.environment import MALLOC_SETTINGS, environment_defaults

LOOPBACK = "127.0.0.1:0"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


class IgnoreInterrupts(WorkerPlugin):
    """Makes workers ignore Ctrl-C, which a terminal sends to all processes: the parent handles it and stops them.

    SIGTERM still ends a worker; otherwise it could outlive its parent. No finished shard is lost.
    """

    name = "clipteacher-interrupts"

    def setup(self, worker: Any) -> None:
        """Called by Dask in the worker's process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class OneGPUPerWorker(LocalCluster):
    """Worker processes that each see one GPU, even after a restart."""

    def __init__(self, gpus: Sequence[str], **options: Any) -> None:
        self._gpus = list(gpus)
        super().__init__(n_workers=0, **options)
        for _ in gpus:
            self.worker_spec.update(self.new_worker_spec())
        # private; the public `scale` starts workers in the background and only logs the errors of those that fail
        self.sync(self._correct_state)

    def new_worker_spec(self) -> dict[Any, dict[str, Any]]:
        """The next worker's name, and how to start it (SpecCluster's interface)."""
        (number,) = super().new_worker_spec()
        options = {**self.new_spec["options"], "env": {VISIBLE_GPUS: self._gpus[number]}}
        return {number: {**self.new_spec, "options": options}}


def visible_gpus() -> tuple[str, ...]:
    """The entry for CUDA_VISIBLE_DEVICES of each GPU visible to this process: the user's own, or its number."""
    count, setting = torch.cuda.device_count(), os.environ.get(VISIBLE_GPUS, "")
    names = [name.strip() for name in setting.split(",")] if setting.strip() else list(map(str, range(count)))
    return tuple(names[:count])


@contextmanager
def local_client(
    workers: int, processes: bool, gpus: Sequence[str] = (), shards_per_worker: int = 1
) -> Iterator[Client]:
    """A client of new workers, in this process or in their own. They share the cores; with `gpus`, each has one GPU.

    Workers listen on the loopback interface only; the environment is restored at the end. Processes have a dashboard
    if bokeh is installed.
    """
    # by default Dask serves HTTP to the whole network: serve only the dashboard, and only to this machine
    servers = ("worker",) if processes and find_spec("bokeh") else ("scheduler", "worker")
    settings: dict[str, Any] = {f"distributed.{server}.http.routes": [] for server in servers}
    settings["distributed.worker.profile.enabled"] = False  # the profile grows throughout the run
    threads = max(1, len(os.sched_getaffinity(0)) // workers if hasattr(os, "sched_getaffinity") else 1)
    worker_environment = "distributed.nanny.pre-spawn-environ"
    settings |= {f"{worker_environment}.{library}_NUM_THREADS": threads for library in ("OMP", "MKL", "OPENBLAS")}
    if not gpus:
        settings |= {f"{worker_environment}.{name}": value for name, (_, value) in MALLOC_SETTINGS.items()}
    with (
        environment_defaults(),  # Dask leaves its workers' OMP_NUM_THREADS in our environment
        dask.config.set(settings),
        _cluster(workers, processes, gpus[:workers], shards_per_worker) as cluster,
        Client(cluster) as client,
    ):
        if processes:
            client.register_plugin(IgnoreInterrupts())
        yield client


def dashboard_link(client: Client) -> str | None:
    """The address of the dashboard of local worker processes, if there is one."""
    has_dashboard = isinstance(client.cluster, LocalCluster) and client.cluster.processes and find_spec("bokeh")
    return client.dashboard_link if has_dashboard else None


def _cluster(workers: int, processes: bool, gpus: Sequence[str], shards_per_worker: int) -> LocalCluster:
    options: dict[str, Any] = {
        "threads_per_worker": shards_per_worker,
        "dashboard_address": LOOPBACK,
        "worker_dashboard_address": LOOPBACK,
        "memory_limit": 0,
        "silence_logs": logging.CRITICAL,
    }
    if not gpus:
        return LocalCluster(n_workers=workers, processes=processes, **options)
    if not find_spec("dask_cuda"):
        return OneGPUPerWorker(gpus, **options)
    from dask_cuda import LocalCUDACluster  # also pins each worker to the cores close to its GPU

    return LocalCUDACluster(CUDA_VISIBLE_DEVICES=list(gpus), n_workers=len(gpus), **options)
