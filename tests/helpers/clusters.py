"""A Dask cluster of real processes on this machine, as another user would have started it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from command_line import REPOSITORY
from dask.distributed import Client


class Cluster:
    """`dask scheduler` and `dask worker`, one thread each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, []
        file = folder / "scheduler.json"
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", file)
        wait_until(file.exists)
        wait_until(lambda: file.read_text().endswith("}"))
        self.address = json.loads(file.read_text())["address"]

    def worker(self, *options: object, **environment: str) -> subprocess.Popen:
        """Start a worker under a nanny, as `dask worker` does; returns once it has joined."""
        before = set(self.workers())
        process = self._start(
            *("worker", self.address, "--nthreads", 1, "--memory-limit", 0),
            *("--local-directory", self.folder, *options),
            **environment,
        )
        wait_until(lambda: set(self.workers()) > before)
        return process

    def workers(self) -> list[str]:
        """The addresses of the workers that have joined."""
        with Client(self.address) as client:
            return list(client.nthreads())

    def _start(self, *command: object, **environment: str) -> subprocess.Popen:
        # workers must import this working tree, not an installed copy
        path = (REPOSITORY, REPOSITORY / "tests/helpers", REPOSITORY / "tests/robustness")
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
        log = (self.folder / f"{command[0]}{len(self.processes)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, command)],
            env=os.environ | own | environment,
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )
        self.processes.append(process)
        return process

    def close(self) -> None:
        """Kill all processes that still run."""
        kill(*self.processes)


@contextmanager
def cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """A scheduler and some workers."""
    folder.mkdir()
    one = Cluster(folder)
    try:
        for _ in range(workers):
            one.worker()
        yield one
    finally:
        one.close()


def kill(*processes: subprocess.Popen) -> None:
    """Kill processes and all their children at once, as a machine that fails does."""
    running = [psutil.Process(process.pid) for process in processes if process.poll() is None]
    family = [one for parent in running for one in (parent, *parent.children(recursive=True))]
    for one in family:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    for process in processes:
        process.wait(timeout=20)
    psutil.wait_procs(family, timeout=20)


def wait_until(condition, seconds=60.0) -> None:
    """Wait until a condition holds; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)
