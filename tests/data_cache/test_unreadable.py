"""Files that cannot be read at the moment are reported as unreadable, never as damaged, changed or missing."""

import errno
import io
import os
import shutil

import pytest
from caches import complete, contents
from refusals import refused

from data_cache.datasets import open_dataset
from data_cache.datasets.folder import open_folder, read_classes
from data_cache.datasets.pairing import files_below
from data_cache.errors import UnreadableError, UserError
from data_cache.integrity import damaged_parts, damaged_shards, verify_files
from data_cache.reader import Cache
from data_cache.source_dataset import SourceDataset, check_images_unchanged
from data_cache.system.files import stat_or_none

TRANSIENT = (errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE)
LOADS = {
    "cls/c/1/0/0": lambda cache: cache.load("default"),
    "masks/default/count/c/0/0": lambda cache: cache.label_counts("default"),
    "journal/c/2": lambda cache: cache.pending_shards("default"),
    "image/id/c/0": lambda cache: cache.ids(),
    "image/status/c/1": lambda cache: cache.statuses(),
    "text/single/features/c/0/0": lambda cache: cache.texts(),
    "dense/c/0/0/0/0/0": lambda cache: cache.dense(1),
}


@pytest.fixture
def path(tmp_path):
    complete(tmp_path / "c.zarr")
    return tmp_path / "c.zarr"


@pytest.fixture
def make_unreadable(monkeypatch):
    """Make opening a file fail with an error number; file permissions would not stop root."""
    original = io.open

    def patch(file, number):
        def failing_open(name, *arguments, **options):
            if str(name) == str(file):
                raise OSError(number, os.strerror(number), str(name))
            return original(name, *arguments, **options)

        monkeypatch.setattr(io, "open", failing_open)

    return patch


def unreadable(action, file):
    message = refused(action, file, "cannot be read (", "try again", kind=UnreadableError)
    assert "delete" not in message
    assert "repair" not in message
    return message


@pytest.mark.parametrize("number", TRANSIENT)
@pytest.mark.parametrize("name", ["zarr.json", "cls/zarr.json", "masks/default/zarr.json"])
def test_unreadable_metadata_is_not_reported_as_damaged(path, make_unreadable, name, number):
    make_unreadable(path / name, number)
    assert os.strerror(number) in unreadable(lambda: Cache(path), path / name)


@pytest.mark.parametrize("number", TRANSIENT)
@pytest.mark.parametrize("name", LOADS)
def test_unreadable_chunks_are_not_reported_as_damaged(path, make_unreadable, name, number):
    cache = Cache(path)
    make_unreadable(path / name, number)
    assert os.strerror(number) in unreadable(lambda: LOADS[name](cache), path / name)


@pytest.mark.parametrize("name", ["cls/c/1/0/0", "masks/default/label/c/0/0/0/0", "text/single/name/c/0"])
def test_verify_lists_unreadable_files_and_continues(path, make_unreadable, name):
    truncated = path / "view/flip/c/2/0"
    truncated.write_bytes(truncated.read_bytes()[:-1])
    before = contents(path)
    cache = Cache(path)
    make_unreadable(path / name, errno.EACCES)
    files, problems = verify_files(cache)
    assert files > 20
    first, second = sorted(problems, key=lambda line: str(truncated) in line)
    assert f"{path / name}: cannot be read (Permission denied)" in first
    assert second == f"{truncated}: damaged"
    part = "masks/default" if name.startswith("masks") else ""
    unreadable(lambda: damaged_parts(cache) if name.startswith("text") else damaged_shards(cache, part), path / name)
    make_unreadable("nothing", 0)
    assert contents(path) == before


def test_symlink_loops_are_not_reported_as_damaged(path):
    for name in ("cls/zarr.json", "zarr.json"):
        (path / name).unlink()
        (path / name).symlink_to(path / name)
        unreadable(lambda: Cache(path), "zarr.json")
    shutil.rmtree(path)
    path.symlink_to(path)
    unreadable(lambda: Cache(path), path)


@pytest.mark.parametrize("kind", ["folder", "pipe"])
@pytest.mark.parametrize("name", LOADS)
def test_folders_and_pipes_in_place_of_files_are_found(path, name, kind):
    (path / name).unlink()
    (path / name).mkdir() if kind == "folder" else os.mkfifo(path / name)
    if not name.startswith("journal"):  # a journal has no record of its own
        cache = Cache(path)
        assert f"{path / name}: damaged" in verify_files(cache)[1]
        if not name.startswith("dense"):
            refused(lambda: LOADS[name](cache), path / name, "missing or truncated")


@pytest.mark.parametrize("name", ["zarr.json", "cls/zarr.json"])
def test_pipe_in_place_of_metadata_does_not_block(path, name):
    (path / name).unlink()
    os.mkfifo(path / name)
    refused(lambda: Cache(path), path)


def test_unreadable_images_are_not_reported_as_changed(path, tmp_path, make_unreadable):
    (tmp_path / "own/images").mkdir(parents=True)
    (tmp_path / "own/classes.txt").write_text("sky\n")
    for number in range(5):
        (tmp_path / f"own/images/{number}.jpg").write_bytes(b"any")
    dataset = open_folder(tmp_path / "own", "train")
    refused(lambda: check_images_unchanged(Cache(path), dataset), "5 images", "changed since the cache was made")
    make_unreadable(tmp_path / "own/images/3.jpg", errno.EACCES)
    unreadable(lambda: check_images_unchanged(Cache(path), dataset), tmp_path / "own/images/3.jpg")
    make_unreadable(tmp_path / "own/classes.txt", errno.EACCES)
    unreadable(lambda: read_classes(tmp_path / "own/classes.txt"), "classes.txt")
    assert "expected" not in unreadable(lambda: open_dataset("folder", tmp_path / "own", "train"), "classes.txt")


def test_unreadable_folder_is_not_reported_as_empty(path, tmp_path, monkeypatch):
    (tmp_path / "images/deep").mkdir(parents=True)
    original = os.scandir

    def scandir(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    unreadable(lambda: files_below(tmp_path / "images", {".jpg"}), tmp_path / "images/deep")
    assert files_below(tmp_path / "no such", {".jpg"}) == []
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    source = SourceDataset(Cache(path), loop)
    assert "cannot be read" in source.location
    unreadable(lambda: source.dataset, loop)


def test_only_missing_paths_are_reported_as_missing(tmp_path):
    assert stat_or_none(tmp_path / "a") is None
    (tmp_path / "file").write_text("")
    assert stat_or_none(tmp_path / "file/a") is None
    with pytest.raises(UserError):
        stat_or_none(tmp_path / ("x" * 300))
