"""An existing Dask cluster: connecting to it, and checking that its workers have the same software and files."""

import asyncio
import hashlib
import logging
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.distributed import Client, Security
from distributed import rpc
from distributed.utils import silence_logging_cmgr

import data_cache
import pipeline
from data_cache.callbacks import Log
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError, one_line
from data_cache.system.lock import lock_file

if TYPE_CHECKING:
    from pipeline.teacher.clip import Precision

CONNECT = 10.0
"""Seconds to reach a scheduler."""
WORKER_TIMEOUT = 60.0
"""Seconds to wait for a worker to join, or to stop a shard."""
FILE_TIMEOUT = 10.0
"""Seconds until a new file must be visible on other machines: network file systems cache its absence."""
COMPARED = ("torch", "open_clip_torch", "numpy", "pillow", "zarr", "distributed")
SOURCES = (data_cache, pipeline)
FIX_VERSIONS = "install the same versions where the worker runs, and start it again"


@dataclass(frozen=True)
class WorkerEnvironment:
    """Library versions of one process, and hashes of what it reads from the shared files."""

    versions: Mapping[str, str]
    lock: str
    sample: str
    host: str = ""
    threads: str = ""


@dataclass(frozen=True)
class Expected:
    """The client's environment, which all workers must match."""

    cache: Path
    sample: Path | None
    environment: WorkerEnvironment

    @classmethod
    def of(cls, cache: Path, dataset: Dataset) -> "Expected":
        """For a dataset, and a cache whose lock this process holds."""
        sample = dataset.path(0) if dataset.root else None
        return cls(cache, sample, inspect_environment(cache, sample))

    def mismatch_message(self, worker: str, seen: WorkerEnvironment | Exception) -> str:
        """What is wrong with a worker and how to fix it; empty if it matches."""
        if message := version_mismatch(worker, self.environment.versions, seen):
            return message
        shared = "must be on a file system that all workers share, under the same path"
        if seen.lock != self.environment.lock:
            return f"worker {worker} does not see the same {self.cache} as this machine; --cache {shared}"
        if seen.sample != self.environment.sample:
            return f"worker {worker} does not see the same {self.sample} as this machine; the dataset (--root) {shared}"
        return ""

    def check_here(self, worker: str) -> None:
        """Raise UserError if this process, that of `worker`, does not match."""
        deadline = time.monotonic() + FILE_TIMEOUT
        while message := self.mismatch_message(worker, inspect_environment(self.cache, self.sample)):
            if time.monotonic() > deadline:
                raise UserError(message)
            time.sleep(0.5)


def inspect_environment(cache: Path | None, sample: Path | None) -> WorkerEnvironment:
    """The environment of this process. It reads the cache's lock and one file of the dataset."""
    return WorkerEnvironment(
        versions(),
        _content(lock_file(cache) if cache else None).decode(errors="replace"),
        hashlib.sha256(_content(sample)).hexdigest(),
        socket.gethostname(),
        os.environ.get("OMP_NUM_THREADS", "all"),
    )


@cache
def versions() -> dict[str, str]:
    """What may change the numbers: versions of libraries, and a hash over the source of stage 1."""
    digest = hashlib.sha256()
    for package in SOURCES:
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(file.read_bytes())
    return {"clipteacher": f"of source {digest.hexdigest()[:12]}", **{name: _version(name) for name in COMPARED}}


def check_address(address: str) -> None:
    """Raise UsageError if `address` cannot be that of a scheduler."""
    if not re.fullmatch(r"[a-z]+://(\[[\w:.%]+\]|[\w.-]+):\d{1,5}", address):
        raise UsageError(f"--scheduler {address}: must be an address such as tcp://host:8786")


@contextmanager
def connected(address: str, log: Log) -> Iterator[Client]:
    """Connect to the cluster at `address` and wait for its first worker. The cluster is left unchanged.

    Raises UserError if no scheduler answers there, or if no worker joins within `WORKER_TIMEOUT`.
    """
    with silence_logging_cmgr(logging.CRITICAL):  # undocumented: silences Dask's own report of our errors
        try:
            with ThreadPoolExecutor(1) as pool:  # in a notebook, this thread already runs an event loop
                kind = pool.submit(asyncio.run, asyncio.wait_for(_server_type(address), CONNECT + 1)).result()
            if kind != "Scheduler":
                raise OSError(f"a {kind} answers")
            client = Client(address, timeout=CONNECT)
        # a server that is not Dask's, or has another version, may cause any exception
        except Exception as error:
            raise UserError(
                f"--scheduler {address}: no Dask scheduler can be reached ({one_line(error)}); start one with `dask "
                "scheduler`, or pass the address it printed"
            ) from None
        with client:
            _wait_for_worker(client, address, log)
            yield client


def check_workers(client: Client, expected: Expected, log: Log) -> None:
    """Check every worker and log their number. Raises UserError with the first mismatch."""
    deadline = time.monotonic() + FILE_TIMEOUT
    while True:
        seen = _run_on_workers(client, inspect_environment, expected.cache, expected.sample)
        mismatches = list(filter(None, (expected.mismatch_message(worker, one) for worker, one in seen.items())))
        if not mismatches:
            break
        if time.monotonic() > deadline or "does not see" not in mismatches[0]:
            more = f" ({len(mismatches) - 1} more workers differ)" if len(mismatches) > 1 else ""
            raise UserError(mismatches[0] + more)
        time.sleep(0.5)
    threads = " or ".join(sorted({one.threads for one in seen.values()}))
    hosts = len({one.host for one in seen.values()})
    link = f", dashboard {client.dashboard_link}" if client.dashboard_link else ""
    counts = f"{len(seen)} worker{'s' * (len(seen) > 1)} on {hosts} machine{'s' * (hosts > 1)}"
    log(f"{counts}, OMP_NUM_THREADS {threads}{link}")


def resolve_on_cluster(address: str, device: str, precision: str, log: Log) -> "tuple[str, Precision]":
    """What the workers resolve `--device` and `--precision` to.

    Raises:
        UserError: the cluster cannot be reached, its workers resolve the precision differently, or one lacks
            clipteacher or has another version.
        UsageError: a worker does not have the device.

    """
    with connected(address, log) as client:
        for worker, seen in _run_on_workers(client, inspect_environment, None, None).items():
            if message := version_mismatch(worker, versions(), seen):
                raise UserError(message)
        results = _run_on_workers(client, _resolve_in_thread, device, precision).values()
    for result in results:
        if isinstance(result, Exception):
            raise result
    counts = Counter(results)
    if len({each for _, each in counts}) > 1:
        listed = ", ".join(f"{count} {each} on {where}" for (where, each), count in counts.items())
        raise UserError(f"--precision {precision}: workers resolve it differently ({listed}); name one of them")
    return counts.most_common(1)[0][0]


def _run_on_workers(client: Client, function: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    """The result of each worker, or its exception. Raises UserError if no worker is left."""
    results = client.run(function, *arguments, on_error="return")
    # workers that have left in the meantime are ignored
    present = {worker: one for worker, one in results.items() if not isinstance(one, OSError)}
    if not present:
        raise UserError("no worker of the Dask cluster answers; start some again")
    return present


async def _resolve_in_thread(device: str, precision: str) -> tuple[str, str]:
    # importing torch must not block the worker's event loop
    return await asyncio.to_thread(_resolve, device, precision)


def _resolve(device: str, precision: str) -> tuple[str, str]:
    from pipeline.teacher.clip import device_and_precision

    return device_and_precision(device, precision)


def version_mismatch(worker: str, ours: Mapping[str, str], seen: WorkerEnvironment | Exception) -> str:
    """The first difference between the versions here and on a worker, as a message; empty if they are equal."""
    if isinstance(seen, Exception):
        reason = one_line(seen)
        return f"worker {worker} cannot load clipteacher ({reason}); {FIX_VERSIONS}"
    for name, here in ours.items():
        if (there := seen.versions.get(name)) != here:
            return f"worker {worker} has {name} {there}, this machine {here}; {FIX_VERSIONS}"
    return ""


async def _server_type(address: str) -> str:
    # a client would wait forever for the handshake of a server other than Dask's; `rpc` is Dask's low-level client
    secured = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT, connection_args=secured) as server:
        return (await server.identity())["type"]


def _wait_for_worker(client: Client, address: str, log: Log) -> None:
    if client.nthreads():
        return
    log(f"{address} has no worker yet; waiting {WORKER_TIMEOUT:.0f} s for one to join")
    try:
        client.wait_for_workers(1, timeout=WORKER_TIMEOUT)
    except TimeoutError:
        raise UserError(
            f"--scheduler {address}: no worker joined within {WORKER_TIMEOUT:.0f} s; start some with "
            f"`dask worker {address}`"
        ) from None


def _content(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b""
    except OSError:
        return b""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(none)"
