"""Settings: the round trip through JSON, and refusals of one line."""

import json
from dataclasses import asdict, fields

import pytest
from refusals import refused

from data_cache.errors import UsageError
from trainer.config import TrainConfig, default_of, help_of, read_config


def test_a_config_survives_the_round_trip(tmp_path):
    config = TrainConfig(cache="a.zarr", lr=1.5e-4, ce=False, size=96, glm="max")
    config.save(tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config


def test_given_values_override_the_file_and_none_does_not(tmp_path):
    TrainConfig(seed=4, lr=0.1).save(tmp_path / "config.json")
    config = read_config(tmp_path / "config.json", lr=0.2, seed=None, ce=False)
    assert (config.seed, config.lr, config.ce) == (4, 0.2, False)
    assert read_config(None) == TrainConfig()


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        ({"learning_rate": 1}, ["--config", "'learning_rate'"]),
        ({"batch_size": "16"}, ["--batch-size", "int"]),
        ({"batch_size": True}, ["--batch-size", "int"]),
        ({"batch_size": 1.5}, ["--batch-size", "int"]),
        ({"lr": "fast"}, ["--lr", "float"]),
        ({"ce": 1}, ["--ce", "bool"]),
        ({"arch": None}, ["--arch", "missing"]),
        ({"batch_size": 0}, ["--batch-size 0", "at least 1"]),
        ({"lr": -1.0}, ["--lr", "at least 0"]),
        ({"size": 16}, ["--size 16", "at least 32"]),
        ({"glm": "median"}, ["--glm median", "attention", "off"]),
        ({"glm": "off", "ce": False, "nel": False, "generate": False}, ["--glm off"]),
    ],
    ids=str,
)
def test_a_bad_setting_in_a_file_is_told_in_one_line(tmp_path, stored, words):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    refused(lambda: read_config(tmp_path / "config.json"), *words, kind=UsageError)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_file_that_is_no_json_object_is_told_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    refused(lambda: read_config(tmp_path / "config.json"), "--config")


def test_a_missing_file_is_told_in_one_line(tmp_path):
    refused(lambda: read_config(tmp_path / "none.json"), "--config", "none.json")


def test_defaults_are_the_papers():
    expected = {"bank": 24, "tau": 0.07, "lr": 6e-5, "head_lr": 10.0, "weight_decay": 0.01, "warmup": 1500}
    expected |= {"poly_power": 1.0, "batch_size": 16, "weight_focal": 100.0, "weight_dice": 1.0, "loss_stride": 1}
    expected |= {"weight_global": 1.0, "max_grad_norm": 0.0}
    expected |= {"glm": "attention", "vla": "transformer", "logits": "cosine", "nel_ignore": "negative"}
    assert {name: default_of(name) for name in expected} == expected


def test_every_setting_has_a_help_that_is_a_sentence():
    assert asdict(TrainConfig()).keys() == {entry.name for entry in fields(TrainConfig)}
    for entry in fields(TrainConfig):
        assert help_of(entry.name).endswith(".")
