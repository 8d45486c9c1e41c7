"""Who works the shards off: Dask. Today one worker inside this process; the same code serves a cluster."""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import dask
from dask.distributed import Client, LocalCluster, WorkerPlugin, as_completed, get_worker

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


def run_shards(job: ShardJob, shards: Iterable[int], tell: Callable[[int], None]) -> Iterator[dict[str, float]]:
    """Run a job over shards; yields each shard's stage times as it finishes; `tell` hears of images done.

    The first exception of a task is raised here; shards finished before it stay finished.
    """
    shards = list(shards)
    if not shards:
        return
    _STOP.clear()
    with dask_client(1, processes=False) as client:
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
def dask_client(workers: int, *, processes: bool) -> Iterator[Client]:
    """Dask on this machine: so many workers of one thread each, in this process or in their own.

    Nothing is served but to this machine, and the environment is as it was afterwards.
    """
    # Dask would serve HTTP to the whole network: keep what it insists on to this machine, and empty
    quiet = {f"distributed.{side}.http.routes": [] for side in ("scheduler", "worker")}
    # it also leaves its workers' OMP_NUM_THREADS behind in this process, for all it starts later
    before = dict(os.environ)
    try:
        with (
            dask.config.set(quiet),
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=processes,
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster) as client,
        ):
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
