"""TensorBoard, Trackio and Weights & Biases: what they receive, and what a resumed run does to them."""

import json
import sqlite3
from importlib import util

import pytest
from command_line import STUDENT, in_a_process
from refusals import refused
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_cache.errors import UsageError
from experiments.figures import training_picture
from trainer.loggers import RUN_ID, check_logger
from trainer.loop import train

SMALL = ("--arch", "fpn", "--encoder", "resnet18", "--size", 64, "--batch-size", 2, "--loss-stride", 4, *STUDENT)


class KilledError(Exception):
    """Raised by the tests to end a run between two updates."""


def die_at(step):
    def on_update(line):
        if line["step"] == step:
            raise KilledError

    return on_update


def test_tensorboard_shows_losses_speed_metrics_and_pictures(tiny_config, tmp_path):
    config = tiny_config(iterations=4, log="tensorboard", log_images=2, val_every=2)
    train(config, tmp_path, draw=training_picture)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    expected = {"loss/total", "loss/global", "train/lr", "speed/images_per_second", "val/pAcc", "val/mIoU_S"}
    assert expected <= set(tags["scalars"])
    lines = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    shown = {event.step: event.value for event in events.Scalars("loss/total")}
    assert shown == {line["step"]: pytest.approx(line["total"], rel=1e-6) for line in lines}
    assert [event.step for event in events.Scalars("val/pAcc")] == [2, 4]
    assert [event.step for event in events.Images("predictions")] == [2, 4]


def test_a_resumed_run_has_each_update_once_in_tensorboard(tiny_config, tmp_path):
    config = tiny_config(iterations=5, checkpoint_every=2, log="tensorboard")
    with pytest.raises(KilledError):
        train(config, tmp_path, on_update=die_at(4))
    train(config, tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5]


def test_a_resumed_run_is_the_same_run_at_wandb(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = tiny_config(iterations=3, checkpoint_every=2, log="wandb")
    with pytest.raises(KilledError):
        train(config, tmp_path, on_update=die_at(3))
    name = (tmp_path / RUN_ID).read_text()
    train(config, tmp_path, resume=True)
    assert (tmp_path / RUN_ID).read_text() == name
    assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))) >= 1


@pytest.mark.slow
def test_wandb_without_an_account_is_reported_in_one_line(scenes, tmp_path):
    command = ("train", "--cache", scenes.cache, "--out", tmp_path / "run", "--iterations", 1, "--log", "wandb", *SMALL)
    done = in_a_process(*command, HOME=str(tmp_path), WANDB_API_KEY="", WANDB_MODE="online")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --log wandb: cannot be started")
    assert last.endswith("omit --log")


@pytest.mark.slow
def test_trackio_has_every_line_and_json_stays_alone_on_stdout(scenes, tmp_path):
    length = ("--iterations", 3, "--log-every", 1, "--log-images", 3)
    command = ("train", "--cache", scenes.cache, "--out", tmp_path / "run", *length, "--log", "trackio", *SMALL)
    done = in_a_process(*command, "--json", TRACKIO_DIR=str(tmp_path / "trackio"), HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 3
    with sqlite3.connect(tmp_path / "trackio/clipteacher.db") as database:
        steps = [
            step
            for (step,) in database.execute("select step from metrics where cast(metrics as text) like '%loss/total%'")
        ]
    assert sorted(steps) == [1, 2, 3]
    assert list((tmp_path / "trackio/media").rglob("*.png"))


def test_a_missing_logger_is_reported_with_its_extra(clipteacher, monkeypatch, tmp_path):
    monkeypatch.setattr("trainer.loggers.find_spec", lambda name: None if name == "wandb" else util.find_spec(name))
    refused(lambda: check_logger("wandb"), "--log wandb", "pip install 'clipteacher[wandb]'", kind=UsageError)
    result = clipteacher("train", "--log", "wandb", "--cache", tmp_path)
    assert result.status == 2
    assert "clipteacher[wandb]" in result.error
    assert "choose tensorboard" in clipteacher("train", "--log", "tensorbord", "--cache", tmp_path).error
