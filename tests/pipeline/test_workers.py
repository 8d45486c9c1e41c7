"""Running a job over shards in this process."""

import hashlib
import logging
import threading
import time

import psutil
import pytest
from command_line import REPOSITORY
from dask.distributed import LocalCluster

from data_cache.callbacks import ignore
from pipeline.dask.cluster import connected, versions
from pipeline.dask.run import run_shards


class Counting:
    """A job of three images per shard; shard `bad` fails, and shard `endless` runs until it is stopped."""

    shards_per_worker = 2

    def __init__(self, bad=None, endless=None):
        self.bad, self.endless = bad, endless

    def run(self, shard, progress):
        if shard == self.bad:
            raise ValueError("shard failed")
        progress(3)
        while shard == self.endless:
            time.sleep(0.05)
            progress(0)
        return {"work": float(shard)}


class Gathering(Counting):
    """Each shard waits for as many as may run at once, and reports how many run."""

    running = None
    together = None

    def run(self, shard, progress):
        self.running.append(shard)
        self.together.wait(timeout=60)
        at_once = len(self.running)
        self.together.wait(timeout=60)  # until all have counted
        self.running.remove(shard)
        return {"work": float(at_once)}


def test_every_shard_runs_once_and_reports_progress():
    reports = []
    assert sorted(clock["work"] for clock in run_shards(Counting(), range(5), reports.append)) == [0, 1, 2, 3, 4]
    assert sum(reports) == 15


@pytest.mark.parametrize("allowed", [1, 2, 3])
def test_a_worker_runs_as_many_shards_at_once_as_the_job_allows(monkeypatch, allowed):
    for name, value in {"running": [], "together": threading.Barrier(allowed), "shards_per_worker": allowed}.items():
        monkeypatch.setattr(Gathering, name, value)
    assert [report["work"] for report in run_shards(Gathering(), range(2 * allowed), ignore)] == [allowed] * 2 * allowed


def test_no_cluster_is_started_without_shards():
    before = threading.active_count()
    assert list(run_shards(Counting(), [], print)) == []
    assert threading.active_count() == before


def test_exception_of_a_shard_is_raised():
    with pytest.raises(ValueError, match="shard failed"):
        list(run_shards(Counting(bad=1), range(3), lambda _: None))


def test_closing_the_run_does_not_wait_for_running_shards():
    shards = run_shards(Counting(endless=1), range(3), lambda _: None)
    next(shards)
    start = time.perf_counter()
    shards.close()
    assert time.perf_counter() - start < 20, "the running shard was waited for"


def test_workers_listen_on_loopback_only():
    shards = run_shards(Counting(), range(2), lambda _: None)
    next(shards)
    listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
    shards.close()
    assert set(listening) <= {"127.0.0.1", "::1"}


def test_dask_is_silent_while_connected():
    handlers = [h for h in logging.getLogger("distributed").handlers if isinstance(h, logging.StreamHandler)]
    with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
        before = [handler.level for handler in handlers]
        with connected(cluster.scheduler_address, ignore):
            during = [handler.level for handler in handlers]
        after = [handler.level for handler in handlers]
    assert handlers
    assert set(during) == {logging.CRITICAL}
    assert before == after


def test_version_is_a_hash_of_the_source_of_stage_1():
    digest = hashlib.sha256()
    for room in ("data_cache", "pipeline"):
        files = sorted((REPOSITORY / room).rglob("*.py"))
        assert len(files) > 10
        for file in files:
            digest.update(file.read_bytes())
    assert versions()["clipteacher"] == f"of source {digest.hexdigest()[:12]}"
