"""A cache that is moved or removed while it is written: one line, and nothing at its old path."""

import shutil

import pytest
from refusals import refused
from test_precompute import assert_same_arrays
from test_reopen import settings_of
from tiny_inputs import draw_blocks

from data_cache.layout import DEFAULT_MASKS
from data_cache.moved import moved_cache_errors
from data_cache.reader import Cache
from pipeline.config import ClusterConfig
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.recluster import recluster


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "here").mkdir()
    return settings_of(draw_blocks(tmp_path / "own", 7), tmp_path / "here/c.zarr")


def on_second_report(action):
    """A progress callback that runs `action` at its second call."""
    calls = []

    def report(_images):
        calls.append(1)
        if len(calls) == 2:
            action()

    return report


def assert_nothing_left(settings):
    assert not settings.cache.parent.exists() or list(settings.cache.parent.iterdir()) == []


@pytest.mark.parametrize("folder", [False, True])
def test_moved_cache_ends_the_run_and_can_be_resumed_at_its_new_path(settings, tmp_path, folder):
    there = tmp_path / "there"
    old, new = (settings.cache.parent, there) if folder else (settings.cache, there / "c.zarr")
    new.parent.mkdir(exist_ok=True)
    work = plan(settings)
    refused(lambda: execute(work, on_second_report(lambda: old.rename(new))), settings.cache, "was moved or removed")
    assert_nothing_left(settings)
    at_new = settings_of(tmp_path / "own", there / "c.zarr")
    execute(plan(at_new))
    execute(plan(settings))
    assert_same_arrays(settings.cache, at_new.cache)


def test_removed_cache_ends_the_run_in_one_line(settings, tmp_path):
    work = plan(settings)

    def remove():
        shutil.rmtree(settings.cache.rename(tmp_path / "bin"))

    refused(lambda: execute(work, on_second_report(remove)), "was moved or removed")
    assert_nothing_left(settings)


def test_cache_moved_during_clustering_ends_the_run(settings, tmp_path):
    execute(plan(settings))
    moved = tmp_path / "moved.zarr"
    config = ClusterConfig(settings.cache, "fine", threshold=0.9)
    refused(lambda: recluster(config, on_second_report(lambda: settings.cache.rename(moved))), "was moved or removed")
    assert_nothing_left(settings)
    assert not Cache(moved).pending_shards(DEFAULT_MASKS)


def test_chunks_written_after_the_move_are_removed_but_no_other_files(tmp_path):
    def gone(*files):
        with moved_cache_errors(tmp_path / "c.zarr"):
            for file in files:
                (tmp_path / "c.zarr" / file).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "c.zarr" / file).write_bytes(b"")

    refused(lambda: gone("cls/c/0/0/0", "dense/c/1/x.partial"), "was moved or removed")
    assert not (tmp_path / "c.zarr").exists()
    refused(lambda: gone("cls/c/0/0/0", "notes.txt"), "was moved or removed")
    assert (tmp_path / "c.zarr/notes.txt").exists()
