import errno
import os
import signal
import subprocess
import sys

import pytest

from data_cache.errors import UserError
from data_cache.system.lock import writer_lock


def test_second_writer_error_names_the_lock_holder(tmp_path):
    cache = tmp_path / "coco.zarr"
    with (
        writer_lock(cache),
        pytest.raises(UserError, match=f"another precompute is writing it \\(process {os.getpid()} on"),
        writer_lock(cache),
    ):
        pass


def test_symlink_to_a_cache_shares_its_lock(tmp_path):
    cache = tmp_path / "coco.zarr"
    cache.mkdir()
    (tmp_path / "link.zarr").symlink_to(cache)
    with writer_lock(cache), pytest.raises(UserError, match="another precompute"), writer_lock(tmp_path / "link.zarr"):
        pass


def test_lock_file_is_removed_on_success_and_failure(tmp_path):
    with pytest.raises(ValueError, match="failed"), writer_lock(tmp_path / "coco.zarr"):
        raise ValueError("failed")
    assert list(tmp_path.iterdir()) == []
    with writer_lock(tmp_path / "coco.zarr"):
        pass


def test_lock_of_a_killed_writer_is_free(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from data_cache.system.lock import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "coco.zarr")], check=False)
    assert killed.returncode == -9
    assert (tmp_path / "coco.zarr.lock").exists()
    with writer_lock(tmp_path / "coco.zarr"):
        pass


def test_forked_process_does_not_keep_the_lock_of_a_killed_writer(tmp_path):
    code = (
        "import os, signal, sys, time; from pathlib import Path; from data_cache.system.lock import writer_lock\n"
        "with writer_lock(Path(sys.argv[1])):\n"
        "    if child := os.fork():\n"
        "        print(child, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    os.close(1); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "coco.zarr")]
    killed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        with writer_lock(tmp_path / "coco.zarr"):
            pass
    finally:
        os.kill(int(killed.stdout), signal.SIGKILL)


def test_lock_file_is_removed_when_the_disk_is_full(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data_cache.system.lock.socket.gethostname", full)
    with pytest.raises(OSError, match="No space"), writer_lock(tmp_path / "coco.zarr"):
        pass
    assert list(tmp_path.iterdir()) == []
