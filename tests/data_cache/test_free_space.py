"""Checks before writing: whether the disk has room."""

import shutil

import pytest
from refusals import refused

from data_cache.system.files import check_free_space, nearest_existing


@pytest.fixture
def disk(monkeypatch, tmp_path):
    """A disk with 2 GiB of free space, and the folders that were looked at."""
    looked = []
    usage = shutil.disk_usage(tmp_path)._replace(free=2 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: looked.append(folder) or usage)
    return looked


def test_too_little_space_is_one_sentence_with_both_sizes_and_the_advice(disk, tmp_path):
    message = refused(lambda: check_free_space(tmp_path, "the cache", (2 << 30) + 1, "pass --cache"), tmp_path)
    assert message == f"{tmp_path}: the cache needs about 2.00 GiB, but 2.00 GiB are free; pass --cache"
    check_free_space(tmp_path, "the cache", 2 << 30, "pass --cache")


def test_files_that_will_be_replaced_count_as_free(disk, tmp_path):
    check_free_space(tmp_path, "the cache", 3 << 30, "pass --cache", replaced=1 << 30)
    refused(lambda: check_free_space(tmp_path, "the cache", 3 << 30, "pass --cache", replaced=1 << 29), "2.50 GiB")


def test_the_disk_is_that_of_the_nearest_folder_that_exists(disk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_free_space(tmp_path / "a/b/c.zarr", "the cache", 1, "pass --cache")
    assert disk == [tmp_path] == [nearest_existing(tmp_path / "a")]
