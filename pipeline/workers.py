"""Who works the shards off: Dask, with one worker inside this process, several in their own, or those of a cluster."""

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from traceback import clear_frames
from typing import Any, Protocol

from dask.distributed import Client, Future, KilledWorker, WorkerPlugin, as_completed, get_worker
from distributed.client import FutureCancelledError

from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError
from pipeline.processes import TASKS, dashboard, local_client, visible_gpus
from pipeline.scheduler import CURE, PATIENCE, Expected, check_address, check_workers, connected

KEPT = "finished shards are kept, and the same command goes on"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Workers:
    """How many there are, and where.

    Args:
        processes: so many on this machine, which share its cores; 0 is this process alone.
        scheduler: address of a Dask cluster that already exists, whose workers are taken instead.
        gpus: a name for CUDA_VISIBLE_DEVICES for each of the processes; none if they are to see all GPUs.

    Raises:
        UsageError: both are asked for, a negative number, or what is no address.

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
            raise UsageError(f"--workers {self.processes}: --scheduler has workers of its own; leave one of them out")

    @classmethod
    def of(cls, processes: int, scheduler: str | None, device: str) -> "Workers":
        """As `--workers`, `--scheduler` and `--device` ask for: where several GPUs are seen, one process a GPU."""
        asked = cls(processes, scheduler)
        gpus = visible_gpus() if not scheduler and device in ("auto", "cuda") else ()
        if len(gpus) < 2:
            return asked
        gpus = gpus[: processes or None]
        return cls(len(gpus), None, gpus)

    @property
    def elsewhere(self) -> bool:
        """Whether the work leaves this process."""
        return bool(self.processes or self.scheduler)


class ShardJob(Protocol):
    """Something that can encode and write a shard by its number."""

    @property
    def cache(self) -> Path:
        """The cache it writes."""

    @property
    def dataset(self) -> Dataset:
        """What it reads."""

    def run(self, shard: int, tell: Callable[[int], None]) -> dict[str, float]:
        """Do shard number `shard`; `tell` hears of images done; returns seconds a stage.

        `tell` may raise, because nobody waits for the shard any more: it must then be left undone.
        """


class JobPlugin(WorkerPlugin):
    """Carries the job to each worker once, so that tasks are nothing but shard numbers.

    The job builds its model in the first task, off the worker's event loop. A worker has `TASKS` shards at hand at the
    most, however many threads it was started with. Where workers are guests' (`expected`), each looks at its first
    shard whether it has and sees what it needs, so that those that join later are checked too.
    """

    def __init__(self, job: ShardJob, name: str, expected: Expected | None = None) -> None:
        self.job, self.name, self.expected = job, name, expected

    def setup(self, worker: Any) -> None:
        """Called by Dask where the worker is."""
        self.worker, self.checked = worker, self.expected is None
        self.hands, self.running, self.stopped = threading.Semaphore(TASKS), set(), threading.Event()

    def run(self, shard: int) -> dict[str, float]:
        """Do a shard, in a thread of the worker's."""
        key, done = self.worker.get_current_task(), 0

        def tell(images: int) -> None:
            nonlocal done
            task = self.worker.state.tasks.get(key)
            # cancelled, by a client or by its end: another run may be about to write this shard
            if self.stopped.is_set() or task is None or task.state == "cancelled":
                raise RuntimeError("stopped")
            done += images
            self.worker.log_event(self.name, (shard, done))

        with self.hands:
            self.running.add(shard)
            try:
                tell(0)
                if not self.checked:
                    self.expected.check_here(self.worker.address)
                    self.checked = True
                return self.job.run(shard, tell)
            except Exception as error:
                # Dask keeps it a while, and with the variables of its frames the model
                while self.expected and error:
                    clear_frames(error.__traceback__)
                    error = error.__context__
                raise
            finally:
                self.running.discard(shard)

    async def teardown(self, worker: Any) -> None:
        """Called by Dask when the run ends, another takes its place, or the worker closes.

        A guest waits for running shards, which stop at their next batch: whoever asked for this may write them next.
        """
        self.stopped.set()
        if self.expected is None:
            return
        deadline = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        del self.job
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            sys.modules["torch"].cuda.empty_cache()


def run_shards(
    job: ShardJob,
    shards: Iterable[int],
    tell: Callable[[int], None],
    workers: Workers = Workers(),
    note: Note = lambda _: None,
) -> Iterator[dict[str, float]]:
    """Run a job over shards; yields each shard's stage times as it finishes; `tell` hears of images done.

    The shard of a worker that dies is done again by another. The first exception of a task is raised here; shards
    finished before it stay finished. `note` hears where the work can be watched. Of a cluster that already exists
    nothing is changed but that the job's plugin is there while this runs.

    Raises:
        UserError: the cluster cannot be reached or used, or was lost (one line each).

    """
    shards = list(shards)
    if not shards:
        return
    with _client(workers, len(shards), note) as client, _carried(job, client, workers, note) as name:
        client.subscribe_topic(name, _counted(tell))
        # pure=False: a shard number must run again even if a scheduler remembers an equal task
        futures = client.map(_run, shards, job=name, key="shard", pure=False, retries=0)
        try:
            for future in _finished(client, futures, note):
                yield _result(future)
        except BaseException:
            client.cancel(futures)
            raise


@contextmanager
def _client(workers: Workers, shards: int, note: Note) -> Iterator[Client]:
    if workers.scheduler:
        with connected(workers.scheduler, note) as client:
            yield client
    else:
        with local_client(max(1, min(workers.processes, shards)), bool(workers.processes), workers.gpus) as client:
            if link := dashboard(client):
                note(f"dashboard {link}")
            yield client


@contextmanager
def _carried(job: ShardJob, client: Client, workers: Workers, note: Note) -> Iterator[str]:
    """The job at all workers, now and later; yields the name it goes by."""
    if not workers.scheduler:
        client.register_plugin(JobPlugin(job, "clipteacher"))
        yield "clipteacher"
        return
    # named after the cache: what a killed run on the same cache left behind is replaced, and runs on others are not
    name, expected = f"clipteacher {job.cache}", Expected.of(job.cache, job.dataset)
    check_workers(client, expected, note)
    try:
        client.register_plugin(JobPlugin(job, name, expected))
        yield name
    finally:
        with suppress(Exception):  # the scheduler may be gone, which is told elsewhere
            client.unregister_worker_plugin(name)


def absolute(dataset: Dataset) -> Dataset:
    """The same images, by paths that do not depend on the working directory."""
    return replace(dataset, root=dataset.root.absolute()) if dataset.root else dataset  # type: ignore[type-var]


def _run(shard: int, job: str) -> dict[str, float]:
    worker = get_worker()
    plugin: Any = worker.plugins.get(job)
    if plugin is None:
        raise UserError(f"worker {worker.address} could not load the job; {CURE}")
    return plugin.run(shard)


def _counted(tell: Callable[[int], None]) -> Callable[[tuple[float, tuple[int, int]]], None]:
    """Hears (shard, images done of it) and tells of new ones: those of a shard that is begun again count once."""
    best: dict[int, int] = {}

    def hear(event: tuple[float, tuple[int, int]]) -> None:
        shard, done = event[1]
        new = done - best.get(shard, 0)
        if new > 0:
            best[shard] = done
            tell(new)

    return hear


def _finished(client: Client, futures: list[Future], note: Note) -> Iterator[Future]:
    """Futures as they complete. Raises UserError if there has been no worker for a while."""
    done, looked, alone = as_completed(futures), time.monotonic(), 0.0
    while not done.is_empty():
        if done.has_ready():
            yield next(done)
            continue
        time.sleep(0.02)
        now = time.monotonic()
        if now - looked < 1 or client.status != "running":
            continue
        looked, before = now, alone
        alone = 0.0 if client.nthreads() else alone or now
        if alone and not before:
            note(f"no worker is left; waiting {PATIENCE:.0f} s for one to join")
        if alone and now - alone > PATIENCE:
            raise UserError(f"no worker is left; start some again: {KEPT}")


def _result(future: Future) -> dict[str, float]:
    try:
        return future.result()
    except KilledWorker as error:
        raise UserError(
            f"{error.allowed_failures + 1} workers died over one shard, the last at {error.last_worker.address}; look "
            f"into its log, most likely memory ran out: use fewer workers or another --precision; {KEPT}"
        ) from None
    except FutureCancelledError:
        raise UserError(f"the Dask scheduler was lost, or cancelled the work; start it again: {KEPT}") from None
