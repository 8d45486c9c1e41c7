"""Runs a job over shards with Dask: in this process, in local worker processes, or on an existing cluster."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from traceback import clear_frames
from typing import Any

from dask.distributed import Client, Future, KilledWorker, WorkerPlugin, as_completed, get_worker
from distributed.client import FutureCancelledError  # not exported by `distributed` itself

from data_cache.callbacks import Log, Progress, ignore
from data_cache.errors import UsageError, UserError
from pipeline.dask.cluster import FIX_VERSIONS, WORKER_TIMEOUT, Expected, check_address, check_workers, connected
from pipeline.dask.local import dashboard_link, local_client, visible_gpus
from pipeline.shard_job import ShardJob, ShardReport

RESUME_HINT = "finished shards are kept, and the same command resumes the others"


@dataclass(frozen=True)
class Workers:
    """How many workers run, and where.

    Args:
        processes: number of worker processes on this machine, which share its cores; 0 uses only this process.
        scheduler: address of an existing Dask cluster, whose workers are used instead.
        gpus: CUDA_VISIBLE_DEVICES of each process; empty if each sees all GPUs.

    Raises:
        UsageError: a negative number, an invalid address, or both a number and an address.

    """

    processes: int = 0
    scheduler: str | None = None
    gpus: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise UsageError(f"--workers {self.processes}: must not be negative")
        if self.scheduler is not None:
            check_address(self.scheduler)
        if self.processes and self.scheduler:
            raise UsageError(
                f"--workers {self.processes}: --scheduler has workers of its own; leave out one of the two"
            )

    @classmethod
    def of(cls, processes: int, scheduler: str | None, device: str) -> "Workers":
        """Resolve `--workers`, `--scheduler` and `--device`: one process per GPU if several are visible."""
        requested = cls(processes, scheduler)
        gpus = visible_gpus() if not scheduler and device in ("auto", "cuda") else ()
        if len(gpus) < 2:
            return requested
        gpus = gpus[: processes or None]
        return cls(len(gpus), None, gpus)

    @property
    def out_of_process(self) -> bool:
        """Whether other processes do the work."""
        return bool(self.processes or self.scheduler)


class JobPlugin(WorkerPlugin):
    """Sends the job to each worker once, so that tasks are only shard numbers.

    The job builds its model in the first task, not on the worker's event loop. A worker runs at most
    `ShardJob.shards_per_worker` shards at once, however many threads it has. On an existing cluster (`expected`), each
    worker checks its environment at its first shard, so that workers that join later are checked too.
    """

    def __init__(self, job: ShardJob, name: str, expected: Expected | None = None) -> None:
        self.job, self.name, self.expected = job, name, expected

    def setup(self, worker: Any) -> None:
        """Called by Dask in the worker's process."""
        self.worker, self.checked = worker, self.expected is None
        self.slots = threading.Semaphore(self.job.shards_per_worker)
        self.running, self.stopped = set(), threading.Event()

    def run(self, shard: int) -> ShardReport:
        """Run a shard, in a thread of the worker."""
        key, done = self.worker.get_current_task(), 0

        def progress(images: int) -> None:
            nonlocal done
            task = self.worker.state.tasks.get(key)
            # canceled, or the client is gone: another run may be about to write this shard
            if self.stopped.is_set() or task is None or task.state == "cancelled":
                raise RuntimeError("stopped")
            done += images
            self.worker.log_event(self.name, (shard, done))

        with self.slots:
            self.running.add(shard)
            try:
                progress(0)
                if not self.checked:
                    self.expected.check_here(self.worker.address)
                    self.checked = True
                return self.job.run(shard, progress)
            except Exception as error:
                # Dask keeps the error, and its frames keep the model
                while self.expected and error:
                    clear_frames(error.__traceback__)
                    error = error.__context__
                raise
            finally:
                self.running.discard(shard)

    async def teardown(self, worker: Any) -> None:
        """Called by Dask when the run ends, another replaces it, or the worker closes.

        On an existing cluster this waits until running shards have stopped at their next batch: the next run may
        write the same shards.
        """
        self.stopped.set()
        if self.expected is None:
            return
        deadline = time.monotonic() + WORKER_TIMEOUT
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        del self.job
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()


def run_shards(
    job: ShardJob, shards: Sequence[int], progress: Progress, workers: Workers = Workers(), log: Log = ignore
) -> Iterator[ShardReport]:
    """Run a job over shards, and yield the report of each finished shard. `progress` counts images done.

    If a worker dies, another one runs its shard again. The first exception of a task is raised here; finished shards
    are kept. `log` receives the address of the dashboard. An existing cluster is left unchanged, except that the
    job's plugin is registered during the run.

    Raises:
        UserError: the cluster cannot be reached or used, or was lost (one line each).

    """
    if not shards:
        return
    with (
        _client(workers, len(shards), job.shards_per_worker, log) as client,
        _registered(job, client, workers, log) as name,
    ):
        client.subscribe_topic(name, _progress_handler(progress))
        # pure=False: a shard must run again even if the scheduler remembers an equal task
        futures = client.map(_run, shards, job=name, key="shard", pure=False, retries=0)
        try:
            for future in _completed(client, futures, log):
                yield _result(future)
        except BaseException:
            client.cancel(futures)
            raise


@contextmanager
def _client(workers: Workers, shards: int, shards_per_worker: int, log: Log) -> Iterator[Client]:
    if workers.scheduler:
        with connected(workers.scheduler, log) as client:
            yield client
    else:
        processes = max(1, min(workers.processes, shards))
        with local_client(processes, bool(workers.processes), workers.gpus, shards_per_worker) as client:
            if link := dashboard_link(client):
                log(f"dashboard {link}")
            yield client


@contextmanager
def _registered(job: ShardJob, client: Client, workers: Workers, log: Log) -> Iterator[str]:
    """Register the job's plugin on all present and future workers; yields its name."""
    if not workers.scheduler:
        client.register_plugin(JobPlugin(job, "clipteacher"))
        yield "clipteacher"
        return
    job = job.with_absolute_paths()
    # named after the cache: the plugin of a killed run on the same cache is replaced, those of other caches are not
    name, expected = f"clipteacher {job.cache}", Expected.of(job.cache, job.dataset)
    check_workers(client, expected, log)
    try:
        client.register_plugin(JobPlugin(job, name, expected))
        yield name
    finally:
        with suppress(Exception):  # the scheduler may be gone, which is reported elsewhere
            client.unregister_worker_plugin(name)


def _run(shard: int, job: str) -> ShardReport:
    worker = get_worker()
    plugin: Any = worker.plugins.get(job)
    if plugin is None:
        raise UserError(f"worker {worker.address} could not load the job; {FIX_VERSIONS}")
    return plugin.run(shard)


def _progress_handler(progress: Progress) -> Callable[[tuple[float, tuple[int, int]]], None]:
    """Turns events (shard, number of its images done) into progress; images of a restarted shard count once."""
    best: dict[int, int] = {}

    def handle(event: tuple[float, tuple[int, int]]) -> None:
        shard, done = event[1]
        new = done - best.get(shard, 0)
        if new > 0:
            best[shard] = done
            progress(new)

    return handle


def _completed(client: Client, futures: list[Future], log: Log) -> Iterator[Future]:
    """Yield futures as they complete. Raises UserError if there is no worker for `WORKER_TIMEOUT`."""
    done, checked_at, no_worker_since = as_completed(futures), time.monotonic(), 0.0
    while not done.is_empty():
        if done.has_ready():
            yield next(done)
            continue
        time.sleep(0.02)
        now = time.monotonic()
        if now - checked_at < 1 or client.status != "running":
            continue
        checked_at, reported = now, no_worker_since > 0
        no_worker_since = 0.0 if client.nthreads() else no_worker_since or now
        if no_worker_since and not reported:
            log(f"no worker is left; waiting {WORKER_TIMEOUT:.0f} s for one to join")
        if no_worker_since and now - no_worker_since > WORKER_TIMEOUT:
            raise UserError(f"no worker is left; start some again: {RESUME_HINT}")


def _result(future: Future) -> ShardReport:
    try:
        return future.result()
    except KilledWorker as error:
        raise UserError(
            f"{error.allowed_failures + 1} workers died at one shard, the last at {error.last_worker.address}; see "
            f"its log; most likely memory ran out: use fewer workers or another --precision; {RESUME_HINT}"
        ) from None
    except FutureCancelledError:
        raise UserError(f"the Dask scheduler was lost, or canceled the work; start it again: {RESUME_HINT}") from None
