"""Repeatedly killed at random instants and rerun, a run writes the same cache."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
KILLS = {"quick": 5, "slow": 40}
LIMIT = 400
"""Runs that may be started until all kills have hit."""


def make_cache(root, cache, log, workers=0):
    """Run stage 1 and log each shard it starts."""
    from folders import precompute_config

    from pipeline.encode_job import EncodeJob
    from pipeline.plan import plan
    from pipeline.precompute import execute

    _log_shards(EncodeJob, log)
    execute(plan(precompute_config(root, cache, shard=2, unseen="disc", workers=workers)))


def cluster_again(root, cache, log):
    """Run `cluster` and log each shard it starts."""
    from pipeline.config import ClusterConfig
    from pipeline.recluster import ClusterJob, recluster

    _log_shards(ClusterJob, log)
    recluster(ClusterConfig(cache, "fine", root, threshold=0.9))


def _log_shards(job, log):
    run = job.run

    def noted(self, shard, progress):
        with log.open("a") as file:
            file.write(f"{shard}\n")
        return run(self, shard, progress)

    job.run = noted


@pytest.fixture(scope="module")
def processes():
    """A fork server with all imports done, so that processes start at once."""
    sys.path.insert(0, str(REPOSITORY))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.precompute", "pipeline.recluster", "test_random_kills"])
    return context


def pending(cache, masks):
    """The unfinished shards; None if there is no cache yet."""
    from data_cache.errors import UserError
    from data_cache.reader import Cache

    if not cache.exists():
        return None
    opened = Cache(cache)
    try:
        return opened.pending_shards(masks)
    except (UserError, KeyError):
        return None


def contents(cache):
    return {f.relative_to(cache).as_posix(): f.read_bytes() for f in cache.rglob("*") if f.is_file()}


def killed_until_done(processes, work, masks, root, cache, log, kills, rng, start_over):
    """Run `work` and kill it at random instants until it has been hit `kills` times; then let it finish.

    Returns how many runs were hit before they finished, and how many shards were started in total.
    """
    longest, hit, begun = 0.5, 0, 0
    for _ in range(LIMIT):
        before = pending(cache, masks)
        if before == [] and hit < kills:
            start_over()
            before = pending(cache, masks)
        log.unlink(missing_ok=True)
        process, start = processes.Process(target=work, args=(root, cache, log)), time.monotonic()
        process.start()
        process.join(None if hit >= kills else rng.uniform(0.02, longest))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            hit += process.exitcode == -signal.SIGKILL
        else:
            longest = max(longest, 1.1 * (time.monotonic() - start))
        ran = list(map(int, log.read_text().split())) if log.exists() else []
        begun += len(ran)
        if before is not None:
            assert set(ran) <= set(before), "a finished shard was done again"
        assert len(ran) == len(set(ran))
        if hit >= kills and process.exitcode == 0:
            return hit, begun
    raise AssertionError(f"only {hit} of {kills} kills hit in {LIMIT} runs")


@pytest.mark.parametrize("amount", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
def test_precompute_killed_at_random_equals_an_uninterrupted_run(processes, drawn, tmp_path, amount):
    whole, cache, log = tmp_path / "whole.zarr", tmp_path / "own/c.zarr", tmp_path / "log"
    process = processes.Process(target=make_cache, args=(drawn, whole, log))
    process.start()
    process.join()
    reference, rounds = contents(whole), []

    def start_over():
        assert contents(cache) == reference
        rounds.append(cache.rename(tmp_path / f"round{len(rounds)}.zarr"))

    work = (make_cache, "default", drawn, cache, log)
    hit, _ = killed_until_done(processes, *work, KILLS[amount], random.Random(0), start_over)
    assert hit >= KILLS[amount]
    assert contents(cache) == reference
    assert [f.name for f in cache.parent.iterdir()] == ["c.zarr"], "something is left next to the cache"


@pytest.mark.parametrize("amount", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
def test_cluster_killed_at_random_equals_an_uninterrupted_run(processes, drawn, tmp_path, amount):
    import shutil

    first, whole, cache, log = (tmp_path / name for name in ("first.zarr", "whole.zarr", "own/c.zarr", "log"))
    for work, cache_path in ((make_cache, first), (cluster_again, whole)):
        if work is cluster_again:
            shutil.copytree(first, whole)
        process = processes.Process(target=work, args=(drawn, cache_path, log))
        process.start()
        process.join()
    reference = contents(whole)
    assert reference.keys() > contents(first).keys()

    def start_over():
        if cache.exists():
            assert contents(cache) == reference
            shutil.rmtree(cache)
        shutil.copytree(first, cache)

    start_over()
    work = (cluster_again, "fine", drawn, cache, log)
    hit, _ = killed_until_done(processes, *work, KILLS[amount], random.Random(1), start_over)
    assert hit >= KILLS[amount]
    assert contents(cache) == reference
    assert [f.name for f in cache.parent.iterdir()] == ["c.zarr"], "something is left next to the cache"
