"""`train --devices 2` as a user runs it: logs, resumption, interrupts, and killed processes."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from cards import change_card
from command_line import REPOSITORY, STUDENT, TINY, folder_options, in_a_process, spawned_processes
from safetensors.torch import load_file
from shapes import draw_shapes

from trainer import checkpoint
from trainer.card import CARD

SMALL = ("--arch", "fpn", "--encoder", "resnet18", "--size", 64, "--batch-size", 4, "--loss-stride", 4, *STUDENT)
TWO = ("--devices", 2, "--workers", 1)
ENDLESS = ("--iterations", 100000)
TIMEOUT = 60
"""Timeout in seconds; importing torch in each process takes about a third of it."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    draw_shapes(folder / "drawn", {"train": 6})
    made = in_a_process("precompute", *folder_options(folder / "drawn"), *TINY, "--cache", folder / "c.zarr")
    assert made.returncode == 0, made.stderr
    return folder / "c.zarr"


def start(cache, run, *arguments, until=None):
    """Start a training in its own process group; returns once its log has a line (or `until`), or it has ended."""
    options = ("train", "--cache", cache, "--out", run, *SMALL, *TWO, *arguments)
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "cli.py"), *map(str, options)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log, deadline = run / "log.jsonl", time.monotonic() + 120
    until = until or (lambda _: log.exists() and log.read_text())
    while not until(process) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def ranks_of(process) -> list[psutil.Process]:
    return spawned_processes(psutil.Process(process.pid).children())


def ended(process, processes) -> str:
    """The stderr of a training, once it and all its processes have ended."""
    _, err = process.communicate(timeout=TIMEOUT)
    assert "Traceback" not in err, err
    assert not psutil.wait_procs(processes, timeout=TIMEOUT)[1], "processes outlive the training"
    return err


@pytest.mark.slow
def test_one_process_resumes_a_run_of_two(clipteacher, cache, tmp_path):
    run = tmp_path / "run"
    process = start(cache, run, *ENDLESS)
    processes = psutil.Process(process.pid).children(recursive=True)
    assert len(ranks_of(process)) == 2
    for _ in range(2):
        os.killpg(process.pid, signal.SIGTERM)  # as Slurm does, and `timeout` twice
    err = ended(process, processes)
    assert process.returncode == 1
    assert "interrupted after update" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    (kept,) = run.glob("step_*")
    step = int(kept.name.removeprefix("step_"))
    # change the number of updates in both saved configs
    config = json.loads((run / "config.json").read_text())
    assert config["devices"] == 2
    (run / "config.json").write_text(json.dumps(config | {"iterations": step + 2}))
    change_card(run, lambda card: card["config"].update(iterations=step + 2))
    clipteacher.good("train", "--out", run, "--resume", "--devices", 1)
    assert [entry.name for entry in run.glob("step_*")] == [f"step_{step + 2:08d}"]
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert clipteacher.good("evaluate", run, *folder_options(cache.parent / "drawn")[:4], "--split", "train").out


@pytest.mark.slow
def test_ctrl_c_during_startup_prints_one_line(cache, tmp_path):
    process = start(cache, tmp_path / "run", *ENDLESS, until=lambda process: len(ranks_of(process)) == 2)
    processes = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert "interrupted after update 1" in ended(process, processes).splitlines()[-1]


@pytest.mark.slow
def test_killed_rank_ends_the_others_in_one_line(cache, tmp_path):
    process = start(cache, tmp_path / "run", *ENDLESS)
    processes = psutil.Process(process.pid).children(recursive=True)
    ranks_of(process)[1].kill()
    err = ended(process, processes)
    assert process.returncode == 1
    assert "process 1 of 2 was killed" in err.splitlines()[-1]


@pytest.mark.slow
def test_ranks_end_when_the_launcher_is_killed(cache, tmp_path):
    process = start(cache, tmp_path / "run", *ENDLESS)
    processes = psutil.Process(process.pid).children(recursive=True)
    assert len(processes) >= 4
    process.kill()
    ended(process, processes)


@pytest.mark.slow
def test_nonfinite_loss_ends_all_processes_and_saves_the_batch(cache, tmp_path):
    run = tmp_path / "run"
    process = start(cache, run, "--lr", 1e30, *ENDLESS)
    err = ended(process, [])
    assert process.returncode == 1
    assert "not finite" in err.splitlines()[-1]
    (kept,) = run.glob("failed_*")
    assert kept.name in err.splitlines()[-1]
    assert len(json.loads((kept / CARD).read_text())["failed"]["image"]) == 4


@pytest.mark.slow
def test_image_unreadable_by_one_rank_is_reported_in_one_line(cache, tmp_path):
    victim = cache.parent / "drawn/images/train/005.png"
    whole = victim.read_bytes()
    victim.write_bytes(b"not an image")
    try:
        err = ended(start(cache, tmp_path / "run", *ENDLESS), [])
    finally:
        victim.write_bytes(whole)
    assert "005.png" in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_resumed_two_process_training_equals_an_uninterrupted_one(cache, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # dropout, so that each process's random numbers count
    length = ("--arch", "segformer", "--encoder", "mit_b0", "--iterations", 12)
    assert start(cache, whole, *length).wait(timeout=TIMEOUT * 2) == 0
    process = start(cache, parts, *length)
    os.killpg(process.pid, signal.SIGINT)
    assert "interrupted" in ended(process, [])
    process = start(cache, parts, *length, "--resume")
    assert process.wait(timeout=TIMEOUT * 2) == 0, process.stderr.read()
    for file in (checkpoint.MODEL, checkpoint.RESUME):
        one, other = (load_file(checkpoint.latest(run) / file) for run in (whole, parts))
        assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--devices", 3), ("--devices 3", "--batch-size 4")),
        (("--devices", 0), ("--devices 0", "at least 1")),
        (("--devices", 2, "--online"), ("--online", "--devices 2")),
    ],
)
@pytest.mark.slow
def test_unavailable_devices_are_refused(clipteacher, cache, tmp_path, options, words):
    result = clipteacher("train", "--cache", cache, "--out", tmp_path / "run", *SMALL, *options)
    assert result.status == 2
    assert all(word in result.error for word in words), result.error
