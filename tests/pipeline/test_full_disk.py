"""A full or read-only disk: one line, a valid cache, and rerunning the same command resumes."""

import errno
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
import zarr.storage._local as local  # private: where zarr writes every file
from refusals import refused
from test_precompute import assert_same_arrays
from test_reopen import settings_of
from tiny_inputs import draw_blocks

from data_cache.integrity import verify_files
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache
from pipeline.plan import plan
from pipeline.precompute import execute


@pytest.fixture
def root(tmp_path):
    return draw_blocks(tmp_path / "own", 7)


@pytest.fixture
def disk(tmp_path):
    """A file system of half a MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(path)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs root")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def assert_resumable(settings, reference):
    cache = Cache(settings.cache)
    left = cache.pending_shards(DEFAULT_MASKS)
    assert 0 < len(left) < cache.layout.shards
    assert all("not done" in line or "not recorded" in line for line in verify_files(cache)[1])
    execute(plan(settings))
    execute(plan(reference))
    assert_same_arrays(settings.cache, reference.cache)
    assert verify_files(Cache(settings.cache))[1] == []
    assert not list(settings.cache.rglob("*.partial"))


def test_full_file_system_ends_the_run_in_one_line_and_keeps_finished_shards(root, disk, tmp_path):
    settings, reports = settings_of(root, disk / "c.zarr"), []

    def fill(images):
        reports.append(images)
        if len(reports) == 2:  # the second shard is being encoded, the first one written
            while len(Cache(settings.cache).pending_shards(DEFAULT_MASKS)) == 3:
                time.sleep(0.01)
            with (disk / "filler").open("wb") as file, suppress(OSError):
                while True:
                    file.write(bytes(4096))
                    file.flush()

    work = plan(settings)
    refused(lambda: execute(work, fill), f"{settings.cache}: the disk is full", "rerun the same command")
    (disk / "filler").unlink()
    assert_resumable(settings, settings_of(root, tmp_path / "whole.zarr"))


@pytest.mark.parametrize("write", [20, 25, 30])
def test_write_error_on_a_full_disk_keeps_finished_shards(root, tmp_path, monkeypatch, write):
    settings, put, writes = settings_of(root, tmp_path / "c.zarr"), local._put, []
    work = plan(settings)
    execute_until_created(work, monkeypatch)

    def full(*arguments, **more):
        writes.append(arguments)
        if len(writes) >= write:
            raise OSError(errno.ENOSPC, "No space left on device")
        return put(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(local, "_put", full)
        refused(lambda: execute(plan(settings)), "the disk is full", "rerun the same command")
    assert_resumable(settings, settings_of(root, tmp_path / "whole.zarr"))


def execute_until_created(work, monkeypatch):
    from pipeline import precompute

    with monkeypatch.context() as patch:
        patch.setattr(precompute, "run_shards", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            execute(work)


def test_read_only_file_system_is_refused_before_encoding(root, disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    refused(lambda: plan(settings_of(root, disk / "deep/c.zarr")), "cannot be written", "--cache")
    assert not list(disk.iterdir())


def test_failed_creation_on_a_full_disk_leaves_nothing(root, tmp_path, monkeypatch):
    settings = settings_of(root, tmp_path / "out/c.zarr")
    work = plan(settings)

    def full(*_: object, **__: object):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(local, "_put", full)
        refused(lambda: execute(work), "the disk is full")
    assert [f.name for f in Path(tmp_path / "out").iterdir()] == []
