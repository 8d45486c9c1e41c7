"""Worker processes on this machine: their GPUs, environment and open ports."""

import importlib.machinery
import os
import sys
import types
import urllib.request
from importlib.util import find_spec

import psutil
import pytest
import torch
from clusters import wait_until
from dask.distributed import LocalCluster, Nanny

from data_cache.errors import UsageError
from pipeline.dask import local as processes
from pipeline.dask.local import local_client
from pipeline.dask.run import Workers


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def visible_gpus(client):
    return sorted(client.run(lambda: os.environ.get("CUDA_VISIBLE_DEVICES")).values(), key=str)


@pytest.mark.slow
def test_each_worker_process_sees_one_of_the_visible_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f1c")
    workers = Workers.of(0, None, "auto")
    assert workers.processes == 2
    with local_client(workers.processes, True, workers.gpus) as client:
        assert visible_gpus(client) == ["2", "GPU-8f1c"]
        pids = client.run(os.getpid)
        assert len({*pids.values(), os.getpid()}) == 3
        lost = next(iter(pids))
        psutil.Process(pids[lost]).kill()
        wait_until(lambda: lost not in client.nthreads() and len(client.nthreads()) == 2)
        assert visible_gpus(client) == ["2", "GPU-8f1c"], "a restarted worker has the same GPU"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2,GPU-8f1c"


@pytest.mark.parametrize("visible", [None, "", " 0, 1 ,2"])
def test_gpus_are_numbered_unless_the_user_named_them(three_gpus, monkeypatch, visible):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Workers.of(0, None, "auto") == Workers(3, None, ("0", "1", "2"))
    assert Workers.of(0, None, "cuda") == Workers(3, None, ("0", "1", "2"))


def test_workers_limits_the_number_of_gpus(three_gpus):
    assert Workers.of(1, None, "cuda") == Workers(1, None, ("0",))
    assert Workers.of(2, None, "auto") == Workers(2, None, ("0", "1"))
    assert Workers.of(8, None, "auto") == Workers(3, None, ("0", "1", "2")), "never two processes on one of several"


def test_single_device_needs_no_worker_processes(three_gpus, monkeypatch):
    assert Workers.of(0, None, "cuda:1") == Workers()
    assert Workers.of(0, None, "cpu") == Workers()
    assert Workers.of(2, None, "cpu") == Workers(2)
    assert Workers.of(0, "tcp://host:8786", "auto") == Workers(0, "tcp://host:8786")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Workers.of(0, None, "auto") == Workers()
    assert Workers.of(2, None, "auto") == Workers(2)


def test_gpu_worker_that_fails_to_start_raises(monkeypatch):
    async def fail(self):
        raise OSError("no memory")

    monkeypatch.setattr(Nanny, "start_unsafe", fail)
    with pytest.raises(RuntimeError, match="failed to start"):
        processes.OneGPUPerWorker(["0"], dashboard_address="127.0.0.1:0")


def test_dask_cuda_is_used_if_installed(monkeypatch):
    received = {}

    class LocalCUDACluster(LocalCluster):
        def __init__(self, CUDA_VISIBLE_DEVICES, n_workers, **options):
            received.update(devices=CUDA_VISIBLE_DEVICES, workers=n_workers, **options)
            super().__init__(n_workers=n_workers, processes=False, **options)

    module = types.ModuleType("dask_cuda")
    module.LocalCUDACluster, module.__spec__ = LocalCUDACluster, importlib.machinery.ModuleSpec("dask_cuda", None)
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setattr(processes.IgnoreInterrupts, "setup", lambda *_, **__: None)  # the worker is this process
    with local_client(2, True, ("2", "3")) as client:
        assert len(client.nthreads()) == 2
    assert received["devices"] == ["2", "3"]
    assert received["workers"] == 2
    assert received["dashboard_address"] == "127.0.0.1:0"


@pytest.mark.parametrize("wrong", [(-1, None), (2, "tcp://host:8786"), (0, "host"), (0, "")])
def test_invalid_workers_are_refused(wrong):
    with pytest.raises(UsageError):
        Workers(*wrong)


def listening():
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {c.laddr.ip for one in family for c in one.net_connections() if c.status == psutil.CONN_LISTEN}


def test_worker_processes_listen_on_loopback_and_have_a_dashboard_with_bokeh():
    with local_client(1, True) as client:
        assert listening() <= {"127.0.0.1", "::1"}
        link = processes.dashboard_link(client)
        assert bool(link) == bool(find_spec("bokeh"))
        if link:
            assert link.startswith("http://127.0.0.1:")
            assert b"bokeh" in urllib.request.urlopen(link, timeout=20).read().lower()


def test_in_process_worker_has_no_dashboard():
    with local_client(1, False) as client:
        assert processes.dashboard_link(client) is None
        assert listening() <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(("own", "found"), [(None, "1"), ("4", "4")])
def test_worker_processes_keep_freed_memory(monkeypatch, own, found):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    if own:
        monkeypatch.setenv("MALLOC_ARENA_MAX", own)
    with local_client(1, True) as client:
        (environment,) = client.run(lambda: dict(os.environ)).values()
    assert environment["MALLOC_ARENA_MAX"] == found
    assert int(environment["MALLOC_TRIM_THRESHOLD_"]) == int(environment["MALLOC_MMAP_THRESHOLD_"]) == 2**31 - 1
    assert os.environ.get("MALLOC_ARENA_MAX") == own
