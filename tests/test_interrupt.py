"""Ctrl-C: what is finished stays, one line says how to go on, and going on ends where it would have ended."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import REPOSITORY, STUDENT, TINY, pictures

from data_cache.store import Cache


def interrupted(arguments, is_time, after=0.0):
    """Start a command, interrupt its whole process group once `is_time` says so, and return (status, stderr)."""
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    # a shell's background jobs ignore SIGINT; a group of its own and the default handler are what a terminal gives
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not is_time() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_saves_its_last_update_and_resumes_from_it(clipteacher, drawn, tmp_path, workers):
    cache, run = tmp_path / "c.zarr", tmp_path / "run"
    data = pictures(drawn)
    clipteacher.good("precompute", *data, *TINY, "--cache", cache)
    student = (
        "--arch",
        "fpn",
        "--encoder",
        "resnet18",
        "--size",
        64,
        "--batch-size",
        2,
        *STUDENT,
        "--workers",
        workers,
    )
    log = run / "log.jsonl"
    status, err = interrupted(
        ("train", "--cache", cache, "--out", run, "--iterations", 100000, *student),
        lambda: log.exists() and log.read_text(),
    )
    assert status == 1, err
    assert "Traceback" not in err
    assert "interrupted after update" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    assert len(list(run.glob("step_*"))) == 1


def test_precompute_keeps_finished_shards_and_goes_on(clipteacher, drawn, tmp_path):
    cache = tmp_path / "c.zarr"
    data = (*pictures(drawn), "--shard", 1, "--image-size", 512)
    arguments = ("precompute", *data, *TINY, "--cache", cache)
    status, err = interrupted(arguments, lambda: (cache / "journal/c/0").exists())
    assert status == 1, err
    assert "Traceback" not in err
    assert "interrupted; finished shards are kept" in err.splitlines()[-1]
    left = len(Cache(cache).pending("default"))
    assert 0 < left < 6
    assert clipteacher.good(*arguments, "--json").json["encoded"] == left
    assert not list(tmp_path.glob("*.lock"))
