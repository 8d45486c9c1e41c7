"""Settings that cannot fit into memory are refused in advance, and full shared memory ends a run."""

import os
import subprocess
import sys
from collections import namedtuple

import psutil
import pytest
import torch
from command_line import REPOSITORY
from refusals import refused

from data_cache.errors import UserError
from trainer import memory
from trainer.loop import train
from trainer.run import run_config
from trainer.students.network import StudentNetwork

GIB = 2**30
Usage = namedtuple("Usage", "free total", defaults=(2**50,))


@pytest.fixture(scope="module")
def student():
    return StudentNetwork("segformer", "mit_b0", "none", 64)


@pytest.fixture
def machine(monkeypatch):
    """A machine with 8 GiB of memory and of shared memory."""
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * GIB)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda _: Usage(8 * GIB))
    return monkeypatch


@pytest.mark.parametrize(
    ("settings", "size", "words"),
    [
        ({"batch_size": 65536}, 512, "--batch-size 65536 of 512 pixels (--size)"),
        ({"batch_size": 64}, 8192, "--batch-size 64 of 8192 pixels (--size)"),
        ({"bank": 65536, "batch_size": 1024}, 64, "--bank 65536"),
        ({"bank": 60000, "batch_size": 256}, 64, "--bank 60000"),  # because of the logits of a batch
        ({"bank": 65536, "batch_size": 1024, "glm": "off"}, 64, "--bank 65536"),
        ({"workers": 1024}, 512, "--workers 1024"),
        ({"batch_size": 512}, 512, "--batch-size 512"),  # because of the activations saved for backward
    ],
)
def test_the_setting_that_cannot_fit_into_memory_is_named(machine, tiny_config, student, settings, size, words):
    machine.setattr(memory.shutil, "disk_usage", lambda _: Usage(10**6 * GIB))
    refused(lambda: memory.check_memory(tiny_config(**settings), student, size, 64), words, "needs at least", "has 8.0")
    assert next(student.parameters()).device.type == "cpu"


def test_settings_that_may_fit_are_accepted_and_random_states_kept(machine, tiny_config, student):
    before = torch.get_rng_state()
    memory.check_memory(tiny_config(batch_size=16, workers=2), student, 512, 64)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_that_does_not_fit_leaves_no_files(machine, tiny_config, tmp_path):
    config = tiny_config(bank=65536, batch_size=65536)
    refused(lambda: train(config, tmp_path / "run"), "--bank 65536")
    refused(lambda: train(tiny_config(batch_size=1024, devices=1024), tmp_path / "run"), "--devices 1024")
    assert list(tmp_path.iterdir()) == []


def test_too_little_shared_memory_is_reported_before_training(machine, tiny_config, student):
    machine.setattr(memory.shutil, "disk_usage", lambda _: Usage(64 * 2**20))
    config = tiny_config(batch_size=16, workers=2)
    refused(
        lambda: memory.check_memory(config, student, 512, 64), "/dev/shm: has 64.0 MiB", "--shm-size", "--workers 0"
    )
    memory.check_memory(tiny_config(batch_size=16), student, 512, 64)


def test_unlimited_shared_memory_is_accepted(machine, tiny_config, student):
    machine.setattr(memory.shutil, "disk_usage", lambda _: Usage(0, 0))
    memory.check_memory(tiny_config(workers=2), student, 64, 64)


@pytest.mark.slow
def test_full_shared_memory_ends_a_run_with_a_one_line_error(tiny_config, tmp_path):
    tiny_config(workers=2, iterations=100, size=128, batch_size=8).save(tmp_path / "config.json")
    code = (
        "import sys; from pathlib import Path; from data_cache.errors import UserError\n"
        "from trainer import memory; from trainer.config import read_config\n"
        "from trainer.loop import train\n"
        "memory._check_shared = lambda *_: None\n"
        "try: train(read_config(Path(sys.argv[1])), Path(sys.argv[2]))\n"
        "except UserError as error: sys.exit(f'error: {error}')"
    )
    small = ("unshare", "-m", "bash", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "-")
    if subprocess.run([*small, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small /dev/shm needs root")
    process = subprocess.run(
        [*small, sys.executable, "-c", code, tmp_path / "config.json", tmp_path / "run"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: /dev/shm: has no room for a batch"), line
    assert "--shm-size" in line
    assert "--workers 0" in line


def test_a_killed_decoding_process_ends_the_run_after_saving_the_last_update(tiny_config, tmp_path):
    run, steps = tmp_path / "run", []
    others = set(psutil.Process(os.getpid()).children())  # such as multiprocessing's, started by other tests

    def kill(line):
        steps.append(line["step"])
        if line["step"] == 2:
            (set(psutil.Process(os.getpid()).children()) - others).pop().kill()

    config = tiny_config(workers=2, iterations=50)
    with pytest.raises(UserError, match="a decoding process was killed") as error:
        train(config, run, on_update=kill)
    assert f"step_{steps[-1]:08d} is saved, resume with `train --out {run} --resume`" in str(error.value)
    assert [path.name for path in run.glob("step_*")] == [f"step_{steps[-1]:08d}"]
    assert 2 <= steps[-1] < 50
    train(run_config(run, print, workers=0), run, resume=True)
