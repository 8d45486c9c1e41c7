"""Several worker processes write the same cache, whichever of them is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
from command_line import REPOSITORY, TINY, folder_options, spawned_processes
from shapes import draw_shapes

from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache

IMAGES = 24
SIZE = 512
"""Large, so that there is time to kill a process."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_shapes(folder, {"train": IMAGES})
    return folder


def start(root, cache, workers):
    options = (
        *folder_options(root),
        *TINY,
        "--shard",
        2,
        "--image-size",
        SIZE,
        "--cache",
        cache,
        "--workers",
        workers,
        "--json",
    )
    command = [sys.executable, str(REPOSITORY / "cli.py"), "precompute", *map(str, options)]
    # one thread each, as with two workers on two cores: rounding depends on it
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def finished(root, cache, workers):
    process = start(root, cache, workers)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def contents(cache):
    return {f.relative_to(cache).as_posix(): f.read_bytes() for f in cache.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def reference(root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("reference") / "c.zarr"
    finished(root, cache, 0)
    return contents(cache)


def wait_for_shards(cache, process, shards=1):
    """Wait until some shards are done, and not all of them."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if len(list((cache / "journal/c").glob("*"))) >= shards:
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_worker_process_loses_nothing(root, tmp_path, reference):
    cache = tmp_path / "own/c.zarr"
    process = start(root, cache, 2)
    wait_for_shards(cache, process)
    workers = spawned_processes(psutil.Process(process.pid).children(recursive=True))
    assert len(workers) == 2
    workers[0].kill()
    assert Cache(cache).pending_shards(DEFAULT_MASKS), "nothing was left to lose"
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert contents(cache) == reference
    assert [f.name for f in cache.parent.iterdir()] == ["c.zarr"]


@pytest.mark.slow
def test_two_workers_killed_at_random_and_rerun_write_the_same_files(root, tmp_path, reference):
    cache, rng, hit = tmp_path / "own/c.zarr", random.Random(0), 0
    for _ in range(12):
        process = start(root, cache, 2)
        wait_for_shards(cache, process, shards=rng.randrange(1, IMAGES // 2))
        time.sleep(rng.uniform(0, 0.1))
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        hit += process.wait() == -signal.SIGKILL
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive, "workers outlive their run, and might write into the next one"
        if cache.exists() and not Cache(cache).pending_shards(DEFAULT_MASKS):
            cache.rename(tmp_path / f"done{hit}.zarr")
    assert hit >= 6
    finished(root, cache, 2)
    assert contents(cache) == reference
    assert [f.name for f in cache.parent.iterdir()] == ["c.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_stops_worker_processes_in_one_line(root, tmp_path, number):
    cache = tmp_path / "c.zarr"
    process = start(root, cache, 2)
    wait_for_shards(cache, process)
    children = psutil.Process(process.pid).children(recursive=True)
    for one in [process, *children]:  # as a terminal does, and Slurm
        with suppress(psutil.NoSuchProcess):  # the first may have ended the others already
            one.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "interrupted; finished shards are kept" in err.strip().splitlines()[-1]
    assert not psutil.wait_procs(children, timeout=20)[1]
