"""Ctrl-C and SIGTERM: finished work is kept, and one line says how to resume."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from unittest.mock import Mock

import pytest
import torch
from command_line import REPOSITORY, STUDENT, TINY, folder_options
from safetensors.torch import load_file, save_file

from data_cache.errors import UserError
from data_cache.reader import Cache
from trainer.card import MODEL, checkpoint_errors

CTRL_C = (signal.SIGINT,)
TERMINATED = (signal.SIGTERM, signal.SIGTERM)
"""`timeout` sends it twice, to the command and to the whole group; Slurm to every process."""


def to_defaults():
    for number in {*CTRL_C, *TERMINATED}:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def interrupted(arguments, is_time, numbers):
    """Start a command, signal its process group once `is_time()` holds, and return (status, stderr)."""
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments)]
    # as in a terminal: its own process group and the default handlers
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=to_defaults,
    )
    deadline = time.monotonic() + 120
    while not is_time() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    for number in numbers:
        os.killpg(process.pid, number)
    return process.wait(timeout=60), process.stderr.read()


@pytest.mark.parametrize(
    ("workers", "numbers"),
    [(2, TERMINATED), *(pytest.param(workers, CTRL_C, marks=pytest.mark.slow) for workers in (0, 2))],
)
def test_interrupted_training_saves_its_last_update(clipteacher, drawn, tmp_path, workers, numbers):
    cache, run = tmp_path / "c.zarr", tmp_path / "run"
    data = folder_options(drawn)
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
        numbers,
    )
    assert status == 1, err
    assert "Traceback" not in err
    assert "interrupted after update" in err.splitlines()[-1]
    assert "--resume" in err.splitlines()[-1]
    assert len(list(run.glob("step_*"))) == 1


@pytest.mark.parametrize(
    "numbers", [CTRL_C, pytest.param(TERMINATED, marks=pytest.mark.slow)], ids=["ctrl-c", "sigterm"]
)
def test_precompute_keeps_finished_shards_and_resumes(clipteacher, drawn, tmp_path, numbers):
    cache = tmp_path / "c.zarr"
    data = (*folder_options(drawn), "--shard", 1, "--image-size", 512)
    arguments = ("precompute", *data, *TINY, "--cache", cache)
    status, err = interrupted(arguments, lambda: (cache / "journal/c/0").exists(), numbers)
    assert status == 1, err
    assert "Traceback" not in err
    assert "interrupted; finished shards are kept" in err.splitlines()[-1]
    left = len(Cache(cache).pending_shards("default"))
    assert 0 < left < 6
    assert clipteacher.good(*arguments, "--json").json["encoded"] == left
    assert not list(tmp_path.glob("*.lock"))


@pytest.fixture
def signalled(clipteacher, monkeypatch, tmp_path):
    """Runs `info`, which has no progress bar, and sends it signals while it runs."""

    def run(*numbers, meanwhile=lambda receive: receive()):
        def receive():
            for number in numbers:
                os.kill(os.getpid(), number)

        monkeypatch.setattr("data_cache.reader.Cache", Mock())
        monkeypatch.setattr("data_cache.description.describe", lambda _: meanwhile(receive) or {})
        return clipteacher("info", tmp_path, "--json")

    before = {number: signal.getsignal(number) for number in {*CTRL_C, *TERMINATED}}
    to_defaults()
    yield run
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("numbers", [CTRL_C, TERMINATED], ids=["ctrl-c", "sigterm"])
def test_interrupted_command_prints_one_line(signalled, numbers):
    result = signalled(*numbers)
    assert result.err == "error: interrupted; rerun the same command to resume or to start again\n"
    assert result.status == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("numbers", [CTRL_C, TERMINATED], ids=["ctrl-c", "sigterm"])
def test_an_interrupt_that_torch_turns_into_an_error_about_the_file_is_still_an_interrupt(
    signalled, numbers, monkeypatch, tmp_path
):
    getitem = torch.UntypedStorage.__getitem__

    def load_interrupted(receive):
        # safetensors loads by torch.asarray, which tries the first element twice and hides the second error
        tries = iter((lambda: None, receive))

        def interrupting(storage, *index):
            next(tries)()
            return getitem(storage, *index)

        monkeypatch.setattr(torch.UntypedStorage, "__getitem__", interrupting)
        with checkpoint_errors(tmp_path):
            load_file(tmp_path / MODEL)

    save_file({"weight": torch.ones(2)}, tmp_path / MODEL)
    with pytest.raises(UserError, match="damaged or foreign checkpoint"):
        load_interrupted(Mock(side_effect=KeyboardInterrupt))
    result = signalled(*numbers, meanwhile=load_interrupted)
    assert result.err == "error: interrupted; rerun the same command to resume or to start again\n"
    assert result.status == 1


@pytest.mark.parametrize("numbers", [CTRL_C, TERMINATED], ids=["ctrl-c", "sigterm"])
def test_a_command_whose_interrupt_was_dropped_does_not_succeed(signalled, numbers):
    def drop(receive):
        with suppress(KeyboardInterrupt):  # as Python does in finalizers
            receive()

    result = signalled(*numbers, meanwhile=drop)
    assert result.err == "error: interrupted; rerun the same command to resume or to start again\n"
    assert result.status == 1


def test_ignored_signal_stays_ignored(signalled):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    assert signalled(signal.SIGTERM).status == 0
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
