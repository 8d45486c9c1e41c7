"""`--scheduler`: a Dask cluster of real processes that is left unchanged."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cluster_jobs import TracedJob
from clusters import cluster, kill, wait_until
from command_line import REPOSITORY, TINY, folder_options
from dask.distributed import Client, WorkerPlugin
from refusals import refused
from shapes import draw_shapes

from data_cache.errors import UsageError
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache
from data_cache.system.lock import writer_lock
from pipeline.config import PrecomputeConfig
from pipeline.dask import cluster as scheduler
from pipeline.dask.run import Workers, run_shards
from pipeline.plan import plan
from pipeline.precompute import execute

IMAGES, SIZE = 12, 256
MISMATCHED = REPOSITORY / "tests/helpers/mismatched_worker.py"
CLIP = {"clip": TINY[1], "clip_weights": "random", "image_size": SIZE}


@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("dask") / "own", workers=2) as one:
        yield one


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw_shapes(folder, {"train": IMAGES})
    return folder


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As many as each worker has: rounding depends on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def planned(root, cache, address=None, shard=1, device="cpu"):
    options = {**CLIP, "precision": "fp32", "unseen": "disc", "device": device}
    return plan(PrecomputeConfig("folder", cache, root, shard=shard, scheduler=address, **options))


def contents(cache):
    return {f.relative_to(cache).as_posix(): f.read_bytes() for f in cache.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def reference(root, tmp_path_factory):
    cache = tmp_path_factory.mktemp("reference") / "c.zarr"
    execute(planned(root, cache))
    return contents(cache)


def left_behind(address):
    """What a run could leave behind: plugins, tasks and CLIPs on workers, plugins and tasks on the scheduler."""

    def in_worker(dask_worker):
        clips = sum(type(one).__name__ == "FrozenCLIP" for one in gc.get_objects())
        return sorted(dask_worker.plugins), list(dask_worker.state.tasks), clips

    def in_scheduler(dask_scheduler):
        return sorted(dask_scheduler.worker_plugins), list(dask_scheduler.tasks)

    with Client(address) as client:
        return {*map(str, client.run(in_worker).values()), str(client.run_on_scheduler(in_scheduler))}


class OtherUsersPlugin(WorkerPlugin):
    """A plugin of another user of the cluster."""

    name = "other user's"


@pytest.mark.slow
def test_killed_worker_loses_nothing_and_files_equal_a_single_process_run(dask, root, tmp_path, reference, monkeypatch):
    lost, counts = dask.worker(), []
    with Client(dask.address) as other:
        other.register_plugin(OtherUsersPlugin())
        theirs = other.submit(sum, [1, 2])
        assert theirs.result() == 3
        before = left_behind(dask.address)
        handlers = other.run(handler)
        monkeypatch.chdir(root.parent)  # relative paths must reach the workers as absolute ones

        def count_images(images):
            counts.append(images)
            if len(counts) == 2:
                kill(lost)
                assert Cache(tmp_path / "c.zarr").pending_shards(DEFAULT_MASKS), "nothing was left to lose"

        notes = []
        work = planned(root.relative_to(root.parent), tmp_path / "c.zarr", dask.address)
        summary = execute(work, count_images, notes.append)
        assert contents(tmp_path / "c.zarr") == reference
        assert summary.encoded == sum(counts) == IMAGES, "the images of a restarted shard count once"
        wait_until(lambda: left_behind(dask.address) == before)
        assert {*other.run(handler).values()} <= {*handlers.values()}
        assert theirs.result() == 3
        other.unregister_worker_plugin("other user's")
    assert "dashboard http://127.0.0.1:" in notes[0]
    assert "3 workers on 1 machine, OMP_NUM_THREADS 1" in notes[0]


def handler():
    import signal as signals

    return str(signals.getsignal(signals.SIGINT))


handler.__module__ = "__main__"  # so that it is pickled by value


def traced(folder, address, shards=6, endless=None, progress=lambda _: None):
    folder.mkdir(exist_ok=True)
    with writer_lock(folder):
        yield from run_shards(TracedJob(folder, endless), range(shards), progress, Workers(scheduler=address))


def test_each_worker_builds_its_model_once(dask, tmp_path):
    counts = []
    clocks = list(traced(tmp_path / "c", dask.address, 8, progress=counts.append))
    assert sorted(clock["work"] for clock in clocks) == list(range(8))
    assert sum(counts) == 24
    models = {f.name.split("_")[1] for f in (tmp_path / "c").glob("model_*")}
    assert len(models) == len(list((tmp_path / "c").glob("model_*"))) == 2
    assert len(list((tmp_path / "c").glob("begun_*"))) == 8


def test_closed_run_leaves_no_shard_running_and_the_cluster_unchanged(dask, tmp_path):
    before = left_behind(dask.address)
    shards = traced(tmp_path / "c", dask.address, endless=0)
    next(shards)
    assert not (tmp_path / "c/stopped_0").exists()
    shards.close()
    assert (tmp_path / "c/stopped_0").exists(), "it may have written into the next run's cache"
    wait_until(lambda: left_behind(dask.address) == before)


@pytest.mark.slow
def test_ctrl_c_cancels_only_this_run_which_can_be_resumed(dask, root, tmp_path, reference):
    cache, before = tmp_path / "own/c.zarr", left_behind(dask.address)
    data = (*folder_options(root), *TINY, "--image-size", SIZE, "--shard", 1, "--cache", cache)
    command = (sys.executable, REPOSITORY / "cli.py", "precompute", *data, "--scheduler", dask.address)
    process = subprocess.Popen(
        list(map(str, command)),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    wait_until(lambda: process.poll() is not None or (cache / "journal/c").is_dir())
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert "interrupted; finished shards are kept" in err.strip().splitlines()[-1]
    assert Cache(cache).pending_shards(DEFAULT_MASKS)
    assert len(dask.workers()) == 2
    wait_until(lambda: left_behind(dask.address) == before)
    execute(planned(root, cache, dask.address))
    assert contents(cache) == reference
    assert [f.name for f in cache.parent.iterdir()] == ["c.zarr"]


@pytest.mark.slow
def test_killed_client_leaves_no_shard_running(dask, tmp_path):
    folder, before = tmp_path / "c", left_behind(dask.address)
    folder.mkdir()
    code = f"""
import sys; sys.path[:0] = {[str(REPOSITORY), str(REPOSITORY / "tests/helpers"), str(Path(__file__).parent)]!r}
from pathlib import Path
from test_existing_cluster import traced
for _ in traced(Path({str(folder)!r}), {dask.address!r}, endless=0): pass
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: list(folder.glob("begun_0_*")))
    process.kill()
    process.wait()
    wait_until((folder / "stopped_0").exists)
    assert len(list(traced(folder, dask.address, 2))) == 2
    wait_until(lambda: left_behind(dask.address) == before)


def test_clustering_on_a_dask_cluster_gives_the_same_masks(dask, clipteacher, root, tmp_path):
    for name, options in {"here": (), "there": ("--scheduler", dask.address)}.items():
        cache = tmp_path / f"{name}.zarr"
        execute(planned(root, cache, shard=3))
        clipteacher.good("cluster", cache, "--name", "fine", "--windows", 2, *options)
    assert contents(tmp_path / "here.zarr") == contents(tmp_path / "there.zarr")


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lack", ["torch", *(pytest.param(lack, marks=pytest.mark.slow) for lack in ("clipteacher", "cache", "dataset"))]
)
def test_mismatched_worker_is_named_with_the_fix(dask, root, tmp_path, monkeypatch, lack):
    monkeypatch.setattr(scheduler, "FILE_TIMEOUT", 0.0)
    cache = tmp_path / "own/c.zarr"
    folder = {"dataset": str(root), "cache": str(cache.parent)}.get(lack, lack)
    mismatched = dask.worker("--preload", MISMATCHED, CLIPTEACHER_TEST_LACKS=folder)
    words = {
        "torch": ("torch 1.0, this machine", "install the same versions"),
        "clipteacher": ("cannot load clipteacher", "install the same versions"),
        "dataset": (root / "images/train/000.png", "--root", "file system that all workers share"),
        "cache": (cache, "--cache", "file system that all workers share"),
    }
    try:
        refused(lambda: execute(planned(root, cache, dask.address)), "worker tcp://127.0.0.1:", *words[lack])
    finally:
        kill(mismatched)
    assert not (cache.exists() and Cache(cache).records())
    wait_until(lambda: len(dask.workers()) == 2)


@pytest.mark.slow
def test_mismatched_worker_that_joins_later_is_named(dask, tmp_path):
    folder, mismatched_workers = tmp_path / "c", []
    shards = traced(folder, dask.address, 400)
    next(shards)
    mismatched_workers.append(dask.worker("--preload", MISMATCHED, CLIPTEACHER_TEST_LACKS=str(tmp_path)))
    try:
        refused(lambda: list(shards), f"does not see the same {folder}", "file system that all workers share")
    finally:
        kill(*mismatched_workers)


def test_other_weights_under_the_same_name_are_refused(dask, root, tmp_path, monkeypatch):
    work = planned(root, tmp_path / "c.zarr", dask.address)
    monkeypatch.setitem(vars(work.job), "weights_hash", "0" * 64)
    refused(lambda: execute(work), "--clip-weights random", "other weights", "same file")


@pytest.fixture
def silent():
    """The address of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


def test_address_without_a_scheduler_is_refused_with_the_fix(dask, clipteacher, root, tmp_path, silent, monkeypatch):
    monkeypatch.setattr(scheduler, "CONNECT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    command = ("precompute", *folder_options(root), *TINY, "--cache", tmp_path / "c.zarr", "--scheduler")
    for address in (closed, silent, dask.workers()[0]):
        result = clipteacher(*command, address)
        assert result.status == 1
        assert address in result.error
        assert "`dask scheduler`" in result.error
    for address in ("here", "8786", "http:/host", "tcp://host", "tcp://host:port", ""):
        result = clipteacher(*command, address)
        assert result.status == 2, address
        assert "tcp://host:8786" in result.error
    both = clipteacher(*command, dask.address, "--workers", 2)
    assert both.status == 2
    assert "--workers 2" in both.error
    assert not list(tmp_path.iterdir())


def test_device_that_workers_lack_is_refused(dask, root, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("they have one")
    there = (tmp_path / "c.zarr", dask.address)
    refused(lambda: planned(root, *there, device="cuda"), "--device cuda", "0 CUDA GPUs are visible", kind=UsageError)


@pytest.mark.slow
def test_scheduler_without_workers_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "WORKER_TIMEOUT", 1.0)
    notes = []
    with cluster(tmp_path / "dask", workers=0) as empty:

        def connect():
            with scheduler.connected(empty.address, notes.append):
                raise AssertionError("no worker has joined")

        refused(connect, "no worker joined within 1 s", f"`dask worker {empty.address}`")
        assert "waiting 1 s" in notes[0]
        monkeypatch.setattr(scheduler, "WORKER_TIMEOUT", 60.0)
        later = threading.Timer(0.5, empty.worker)
        later.start()
        with scheduler.connected(empty.address, notes.append) as client:
            assert client.nthreads()
        later.join()


@pytest.mark.slow
def test_lost_scheduler_ends_the_run_in_one_line(tmp_path):
    with cluster(tmp_path / "dask", workers=1) as one:
        shards = traced(tmp_path / "c", one.address, 100)
        next(shards)
        kill(one.scheduler)
        refused(lambda: list(shards), "the Dask scheduler was lost", "finished shards are kept")


@pytest.mark.slow
def test_run_waits_for_new_workers_if_all_are_lost(tmp_path, monkeypatch):
    from pipeline.dask import run as workers

    monkeypatch.setattr(workers, "WORKER_TIMEOUT", 3.0)
    with cluster(tmp_path / "dask", workers=1) as one:
        shards = traced(tmp_path / "c", one.address, 100)
        next(shards)
        kill(one.processes[-1])
        time.sleep(1)
        one.worker()
        assert [next(shards) for _ in range(3)]
        kill(one.processes[-1])
        refused(lambda: list(shards), "no worker is left", "finished shards are kept")


@pytest.mark.slow
def test_shard_that_kills_every_worker_ends_the_run_in_one_line(dask, tmp_path):
    from cluster_jobs import WorkerKillingJob

    (tmp_path / "c").mkdir()
    with writer_lock(tmp_path / "c"):
        run = run_shards(WorkerKillingJob(tmp_path / "c"), range(3), lambda _: None, Workers(scheduler=dask.address))
        refused(lambda: list(run), "4 workers died at one shard", "finished shards are kept")
    wait_until(lambda: len(dask.workers()) == 2)


@pytest.mark.slow
def test_two_runs_share_a_cluster(dask, root, tmp_path, reference):
    caches = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda cache: execute(planned(root, cache, dask.address)), caches))  # raises what a run raises
    for cache in caches:
        assert contents(cache) == reference
