"""Atomic writes and their drafts, leftover removal, and messages of system errors."""

import errno
import os
from pathlib import Path

import pytest
from caches import complete
from refusals import refused
from safetensors import SafetensorError

from data_cache.errors import UserError, disk_errors, explain_os_error
from data_cache.system.atomic import atomic_write, draft_path, draft_paths
from data_cache.writer import CacheWriter


@pytest.mark.parametrize("name", ["c.zarr", "c[1].zarr", "c*.zarr", "ü é.zarr"])
def test_remove_leftovers_removes_every_draft_of_the_cache(tmp_path, name):
    complete(tmp_path / name)
    file, folder, link = (draft_path(tmp_path / name) for _ in range(3))
    file.write_text("half")
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    assert set(draft_paths(tmp_path / name)) == {file, folder, link}
    CacheWriter(tmp_path / name).remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {name, "elsewhere"}


def test_remove_leftovers_keeps_unrelated_files(tmp_path):
    complete(tmp_path / "c.zarr")
    others = ["c.zarr.tar.partial", "c.zarr.old.zarr.0123.partial", "c.zarr.0123.partial", "c.zarr.lock"]
    others += [draft_path(tmp_path / "c.zarr.zarr").name, draft_path(tmp_path / "cXzarr").name]
    for name in others:
        (tmp_path / name).write_text("mine")
    CacheWriter(tmp_path / "c.zarr").remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"c.zarr", *others}


def test_failed_atomic_write_keeps_the_old_file(tmp_path):
    file = tmp_path / "new/result.json"
    with atomic_write(file) as draft:
        draft.write_text("old")

    def cut_short():
        with atomic_write(file) as draft:
            draft.write_text("half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        cut_short()
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]


def test_atomic_write_follows_symlinks(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with atomic_write(tmp_path / "link") as draft:
        draft.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_reported_in_one_line(tmp_path, error):
    def write():
        with disk_errors(tmp_path, "make room"):
            raise error

    refused(write, tmp_path, "the disk is full; make room")


@pytest.mark.parametrize("error", [SafetensorError("header too large"), OSError(errno.EIO, "I/O error"), ValueError()])
def test_other_errors_are_not_blamed_on_the_disk(tmp_path, error):
    with pytest.raises(type(error)) as raised, disk_errors(tmp_path, "make room"):
        raise error
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127, "c.zarr" + "y" * 230])
def test_atomic_write_supports_the_longest_file_names(tmp_path, name):
    with atomic_write(tmp_path / name) as draft:
        draft.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    draft_path(tmp_path / name).write_text("leftover")
    draft_path(tmp_path / f"{name[:-1]}z").write_text("unrelated")
    (leftover,) = draft_paths(tmp_path / name)
    assert leftover.read_text() == "leftover"


def test_failed_write_names_the_file_and_not_its_draft(tmp_path):
    def cut_short():
        with atomic_write(tmp_path / "f.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as raised:
        cut_short()
    assert explain_os_error(raised.value) == (
        f"{tmp_path / 'f.json'}: the disk is full; free some space or choose another path, and rerun the command"
    )


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_system_errors_name_the_file_and_a_fix(number):
    message = explain_os_error(OSError(number, "words", "/some/file"))
    assert message.startswith("/some/file: ")
    assert "; " in message
    assert "Errno" not in message


def test_atomic_write_rejects_devices():
    def write():
        with atomic_write(Path(os.devnull)):
            pass

    with pytest.raises(FileExistsError) as raised:
        write()
    assert explain_os_error(raised.value) == f"{os.devnull}: a device or a pipe, not a file; choose another path"
    assert Path(os.devnull).is_char_device()


def test_atomic_write_replaces_symlink_loops(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with atomic_write(loop) as draft:
        draft.write_text("new")
    assert loop.read_text() == "new"


def test_write_errors_without_a_file_name_get_one(tmp_path):
    with pytest.raises(OSError, match="I/O error") as raised, disk_errors(tmp_path, "make room"):
        raise OSError(errno.EIO, "I/O error")
    assert explain_os_error(raised.value).startswith(f"{tmp_path}: I/O error; ")


def test_atomic_write_keeps_permissions(tmp_path):
    file = tmp_path / "private.json"
    file.write_text("old")
    file.chmod(0o640)
    with atomic_write(file) as draft:
        draft.write_text("new")
    assert file.stat().st_mode & 0o777 == 0o640


def test_atomic_write_rejects_named_pipes(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    def write():
        with atomic_write(tmp_path / "pipe") as draft:
            draft.write_text("new")

    with pytest.raises(FileExistsError, match="pipe"):
        write()
    assert (tmp_path / "pipe").is_fifo()
