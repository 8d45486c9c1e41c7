"""Who works the shards off: Dask, with one worker inside this process or several in their own."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import dask
from dask.distributed import Client, LocalCluster, WorkerPlugin, as_completed, get_worker

TASKS = 2
"""Shards that a worker has at hand at once: while one has CLIP, the other is decoded before it or written after it."""
PROGRESS = "clipteacher-progress"
_STOP = threading.Event()


class ShardJob(Protocol):
    """Something that can encode and write a shard by its number."""

    def run(self, shard: int, tell: Callable[[int], None]) -> dict[str, float]:
        """Do shard number `shard`; `tell` hears of images done; returns seconds a stage."""


class JobPlugin(WorkerPlugin):
    """Carries the job to each worker once, so that tasks are nothing but shard numbers.

    The job builds its model in the first task, off the worker's event loop.
    """

    name = "clipteacher-job"

    def __init__(self, job: ShardJob) -> None:
        self.job = job


class LeaveInterrupts(WorkerPlugin):
    """Ctrl-C reaches every process of a terminal: who started the workers answers it, and stops them."""

    name = "clipteacher-interrupts"

    def setup(self, worker: Any) -> None:
        """Called by Dask in the worker's process."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_shards(
    job: ShardJob, shards: Iterable[int], tell: Callable[[int], None], workers: int = 0
) -> Iterator[dict[str, float]]:
    """Run a job over shards; yields each shard's stage times as it finishes; `tell` hears of images done.

    With `workers` they run in so many processes, which share the cores; the shard of one that dies is done again by
    another. The first exception of a task is raised here; shards finished before it stay finished.
    """
    shards = list(shards)
    if not shards:
        return
    _STOP.clear()
    with dask_client(max(1, min(workers, len(shards))), processes=workers > 0, tasks=TASKS) as client:
        client.register_plugin(JobPlugin(job))
        client.subscribe_topic(PROGRESS, lambda event: tell(event[1]))
        # pure=False: a shard number must run again even if a scheduler remembers an equal task
        futures = client.map(_run, shards, pure=False, retries=0)
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            # closing the cluster waits for the running task: let it end at its next batch, its shard undone
            _STOP.set()
            client.cancel(futures)
            raise


@contextmanager
def dask_client(workers: int, *, processes: bool, tasks: int = 1) -> Iterator[Client]:
    """Dask on this machine: so many workers of so many tasks each, in this process or their own, the cores divided.

    Nothing is served but to this machine, and the environment is as it was afterwards.
    """
    # Dask would serve HTTP to the whole network: keep what it insists on to this machine, and empty
    quiet = {f"distributed.{side}.http.routes": [] for side in ("scheduler", "worker")}
    threads = max(1, len(os.sched_getaffinity(0)) // workers if hasattr(os, "sched_getaffinity") else 1)
    environment = "distributed.nanny.pre-spawn-environ"
    quiet |= {f"{environment}.{library}_NUM_THREADS": threads for library in ("OMP", "MKL", "OPENBLAS")}
    # it also leaves its workers' OMP_NUM_THREADS behind in this process, for all it starts later
    before = dict(os.environ)
    try:
        with (
            dask.config.set(quiet),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=tasks,
                processes=processes,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
            if processes:
                client.register_plugin(LeaveInterrupts())
            yield client
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(shard: int) -> dict[str, float]:
    worker = get_worker()
    plugin: Any = worker.plugins[JobPlugin.name]

    def tell(images: int) -> None:
        if _STOP.is_set():
            raise RuntimeError("stopped")
        worker.log_event(PROGRESS, images)

    return plugin.job.run(shard, tell)
