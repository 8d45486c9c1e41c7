"""A Dask cluster that already exists: reaching it, and whether its workers have and see what they need."""

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
from typing import Any

from dask.distributed import Client, Security
from distributed import rpc
from distributed.utils import silence_logging_cmgr

from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError, one_line
from data_cache.lock import lock_file

CONNECT = 10.0
"""Seconds to reach a scheduler."""
PATIENCE = 60.0
"""Seconds to wait for a worker to join, or to let go of a shard."""
SETTLE = 10.0
"""Seconds until a file that was just written must be seen elsewhere: network file systems remember what was missing."""
COMPARED = ("torch", "open_clip_torch", "numpy", "pillow", "zarr", "distributed")
SOURCES = ("data_cache", "pipeline")
CURE = "install the same versions where the worker runs, and start it again"


@dataclass(frozen=True)
class Sight:
    """What one process has and sees."""

    versions: Mapping[str, str]
    lock: str
    sample: str
    host: str = ""
    threads: str = ""


@dataclass(frozen=True)
class Expected:
    """What the client has and sees, which its workers must have and see as well."""

    cache: Path
    sample: Path | None
    sight: Sight

    @classmethod
    def of(cls, cache: Path, dataset: Dataset) -> "Expected":
        """Of a cache whose lock this process holds, and a dataset."""
        sample = dataset.path(0) if dataset.root else None
        return cls(cache, sample, look(cache, sample))

    def complaint(self, worker: str, seen: Sight | Exception) -> str:
        """What is wrong with a worker, and how to mend it; empty if nothing is."""
        if wrong := misfit(worker, self.sight.versions, seen):
            return wrong
        shared = "must be on a file system that all workers share, under the same path"
        if seen.lock != self.sight.lock:
            return f"worker {worker} does not see {self.cache} as this machine does; --cache {shared}"
        if seen.sample != self.sight.sample:
            return f"worker {worker} does not see {self.sample} as this machine does; the dataset (--root) {shared}"
        return ""

    def check_here(self, worker: str) -> None:
        """Raise UserError if this process, a worker's, lacks something."""
        deadline = time.monotonic() + SETTLE
        while wrong := self.complaint(worker, look(self.cache, self.sample)):
            if time.monotonic() > deadline:
                raise UserError(wrong)
            time.sleep(0.5)


def look(cache: Path | None, sample: Path | None) -> Sight:
    """What this process has, and sees of a cache's lock and of a file of the dataset."""
    return Sight(
        versions(),
        _content(lock_file(cache) if cache else None).decode(errors="replace"),
        hashlib.sha256(_content(sample)).hexdigest(),
        socket.gethostname(),
        os.environ.get("OMP_NUM_THREADS", "all"),
    )


@cache
def versions() -> dict[str, str]:
    """What may change the numbers: libraries by their version, this program by a hash over its source."""
    digest = hashlib.sha256()
    for room in SOURCES:
        for file in sorted((Path(__file__).parents[1] / room).rglob("*.py")):
            digest.update(file.read_bytes())
    return {"clipteacher": f"of source {digest.hexdigest()[:12]}", **{name: _version(name) for name in COMPARED}}


def check_address(address: str) -> None:
    """Raise UsageError if that cannot be a scheduler's address."""
    if not re.fullmatch(r"[a-z]+://(\[[\w:.%]+\]|[\w.-]+):\d{1,5}", address):
        raise UsageError(f"--scheduler {address}: must be an address such as tcp://host:8786")


@contextmanager
def connected(address: str, note: Callable[[str], None]) -> Iterator[Client]:
    """A client of the cluster at `address`, which has a worker. The cluster is left as it is.

    Raises UserError if nothing answers there, or no worker joins in a while.
    """
    with silence_logging_cmgr(logging.CRITICAL):  # what Dask would log is told here in one line
        try:
            with ThreadPoolExecutor(1) as pool:  # a notebook's own thread has an event loop already
                kind = pool.submit(asyncio.run, asyncio.wait_for(_kind(address), CONNECT + 1)).result()
            if kind != "Scheduler":
                raise OSError(f"a {kind} answers")
            client = Client(address, timeout=CONNECT)
        # of what a server that is not Dask's, or another Dask's, may say, any exception may be made
        except Exception as error:
            raise UserError(
                f"--scheduler {address}: no Dask scheduler can be reached ({one_line(error)}); start one with `dask "
                "scheduler`, or pass the address it printed"
            ) from None
        with client:
            _wait_for_one(client, address, note)
            yield client


def check_workers(client: Client, expected: Expected, note: Callable[[str], None]) -> None:
    """Look at every worker, and note how many there are. Raises UserError with the first complaint."""
    deadline = time.monotonic() + SETTLE
    while True:
        seen = _answers(client, look, expected.cache, expected.sample)
        wrong = list(filter(None, (expected.complaint(worker, one) for worker, one in seen.items())))
        if not wrong:
            break
        if time.monotonic() > deadline or "does not see" not in wrong[0]:
            raise UserError(wrong[0] + (f" ({len(wrong) - 1} more like it)" if len(wrong) > 1 else ""))
        time.sleep(0.5)
    threads = " or ".join(sorted({sight.threads for sight in seen.values()}))
    hosts = len({sight.host for sight in seen.values()})
    link = f", dashboard {client.dashboard_link}" if client.dashboard_link else ""
    counts = f"{len(seen)} worker{'s' * (len(seen) > 1)} on {hosts} machine{'s' * (hosts > 1)}"
    note(f"{counts}, OMP_NUM_THREADS {threads}{link}")


def agreed(client: Client, device: str, precision: str) -> tuple[str, str]:
    """The device and the precision that every worker makes of `--device` and `--precision`.

    Raises:
        UserError: they differ in precision, or a worker has no clipteacher or another version of it.
        UsageError: a worker has no such device.

    """
    for worker, seen in _answers(client, look, None, None).items():
        if wrong := misfit(worker, versions(), seen):
            raise UserError(wrong)
    answers = _answers(client, _resolved, device, precision).values()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    found = Counter(answers)
    if len({each for _, each in found}) > 1:
        told = ", ".join(f"{count} {each} on {where}" for (where, each), count in found.items())
        raise UserError(f"--precision {precision}: workers differ in what that is ({told}); name one of them")
    return found.most_common(1)[0][0]


def _answers(client: Client, function: Callable[..., Any], *arguments: object) -> dict[str, Any]:
    """What each worker answers, an exception included. Raises UserError if there is none left."""
    answers = client.run(function, *arguments, on_error="return")
    # one that has gone meanwhile is missed by nobody
    there = {worker: one for worker, one in answers.items() if not isinstance(one, OSError)}
    if not there:
        raise UserError("no worker of the Dask cluster answers; start some again")
    return there


async def _resolved(device: str, precision: str) -> tuple[str, str]:
    # off the worker's event loop, which must answer while torch is being loaded
    return await asyncio.to_thread(_resolve, device, precision)


def _resolve(device: str, precision: str) -> tuple[str, str]:
    from pipeline.clip import device_and_precision

    return device_and_precision(device, precision)


def misfit(worker: str, ours: Mapping[str, str], seen: Sight | Exception) -> str:
    """What differs between the versions here and at a worker, as a complaint; empty if nothing does."""
    if isinstance(seen, Exception):
        reason = one_line(seen)
        return f"worker {worker} cannot load clipteacher ({reason}); {CURE}"
    for name, here in ours.items():
        if (there := seen.versions.get(name)) != here:
            return f"worker {worker} has {name} {there}, this machine {here}; {CURE}"
    return ""


async def _kind(address: str) -> str:
    # a client would wait for ever for the greeting of a server that is not Dask's
    secured = Security().get_connection_args("client")
    async with rpc(address, timeout=CONNECT, connection_args=secured) as server:
        return (await server.identity())["type"]


def _wait_for_one(client: Client, address: str, note: Callable[[str], None]) -> None:
    if client.nthreads():
        return
    note(f"{address} has no worker yet; waiting {PATIENCE:.0f} s for one to join")
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise UserError(
            f"--scheduler {address}: no worker joined in {PATIENCE:.0f} s; start some with `dask worker {address}`"
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
