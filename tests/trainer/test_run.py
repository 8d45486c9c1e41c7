"""The lock and the files of a run folder."""

import os
import subprocess
import sys

import pytest
from command_line import REPOSITORY
from refusals import refused

from trainer.loop import train
from trainer.run import LOCK, exclusive_run, full_disk_advice


@pytest.mark.parametrize("devices", [1, 2])
def test_a_second_training_of_a_run_is_refused_and_names_the_first(tiny_config, tmp_path, devices):
    run = tmp_path / "run"
    with exclusive_run(run):
        refused(
            lambda: train(tiny_config(iterations=1, devices=devices), run),
            f"{run}: another training is writing it (process {os.getpid()} on",
            "--out",
        )
        assert [path.name for path in run.iterdir()] == [LOCK]
    assert not run.exists()


def test_a_link_to_a_run_is_the_same_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")

    def train_again():
        with exclusive_run(tmp_path / "link"):
            pass

    with exclusive_run(tmp_path / "run"):
        refused(train_again, "another training")


def test_a_refused_run_leaves_no_folder(tiny_config, tmp_path):
    refused(lambda: train(tiny_config(cache=str(tmp_path / "none.zarr")), tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_training_is_released(tiny_config, tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from trainer.run import exclusive_run\n"
        "with exclusive_run(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False, cwd=REPOSITORY)
    assert killed.returncode == -9
    assert (tmp_path / "run" / LOCK).exists()
    train(tiny_config(iterations=1), tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_resuming_a_run_without_a_checkpoint_is_refused(tiny_config, tmp_path):
    run, config = tmp_path / "run", tiny_config(iterations=1)
    run.mkdir()
    config.save(run / "config.json")
    refused(lambda: train(config, run, resume=True), f"no checkpoint in {run} yet", "omit --resume")


@pytest.mark.parametrize("name", ["config.json", "log.jsonl"])
def test_a_folder_in_place_of_a_file_is_reported_before_training(tiny_config, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    refused(lambda: train(tiny_config(iterations=1), tmp_path / "run"), name, "is a folder", "--out")


def test_full_disk_advice_depends_on_whether_a_checkpoint_exists(tmp_path):
    assert "nothing was saved yet" in full_disk_advice(tmp_path)
    (tmp_path / "step_00000007").mkdir()
    assert f"resume with `train --out {tmp_path} --resume`" in full_disk_advice(tmp_path)
