"""Who works the shards off: Dask. Today one worker inside this process; the same code serves a cluster."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from dask.distributed import Client, LocalCluster, Worker, WorkerPlugin, as_completed, get_worker

PROGRESS = "clipteacher-progress"


class ShardJob(Protocol):
    """Something that can encode and write a shard by its number."""

    def run(self, shard: int, tell: Callable[[int], None]) -> dict[str, float]:
        """Do shard number `shard`; `tell` hears of images done; returns seconds a stage."""


class JobPlugin(WorkerPlugin):
    """Carries the job to each worker once, so that tasks are nothing but shard numbers."""

    name = "clipteacher-job"

    def __init__(self, job: ShardJob) -> None:
        self.job = job

    def setup(self, worker: Worker) -> None:
        """Nothing yet: the model is built by the first task, off the worker's event loop."""


def run_shards(job: ShardJob, shards: Iterable[int], tell: Callable[[int], None]) -> Iterator[dict[str, float]]:
    """Run a job over shards; yields each shard's stage times as it finishes; `tell` hears of images done.

    The first exception of a task is raised here; shards finished before it stay finished.
    """
    shards = list(shards)
    if not shards:
        return
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(JobPlugin(job))
        client.subscribe_topic(PROGRESS, lambda event: tell(event[1]))
        # pure=False: a shard number must run again even if a scheduler remembers an equal task
        futures = client.map(_run, shards, pure=False, retries=0)
        for future in as_completed(futures):
            yield future.result()


def _run(shard: int) -> dict[str, float]:
    worker = get_worker()
    plugin: Any = worker.plugins[JobPlugin.name]
    return plugin.job.run(shard, lambda images: worker.log_event(PROGRESS, images))
