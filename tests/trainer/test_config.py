"""Settings: JSON round trip, and one-line errors."""

import json
import math
from dataclasses import asdict, fields

import pytest
from refusals import refused

from data_cache.errors import UsageError
from data_cache.options import default_of, help_of
from trainer.config import TrainConfig, read_config


def test_a_config_round_trips_through_json(tmp_path):
    config = TrainConfig(cache="a.zarr", lr=1.5e-4, ce=False, size=96, glm="max")
    config.save(tmp_path / "config.json")
    assert read_config(tmp_path / "config.json") == config


def test_given_values_override_the_file_unless_they_are_none(tmp_path):
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
        ({"size": 32_000_000}, ["--size 32000000", "at most 32768"]),
        ({"batch_size": 1e8}, ["--batch-size 100000000.0", "int"]),
        ({"batch_size": 10**8}, ["--batch-size 100000000", "at most"]),
        ({"bank": 10**9}, ["--bank 1000000000", "at most"]),
        ({"iterations": 10**400}, ["--iterations of many digits", "at most 99999999"]),
        ({"iterations": 10**8}, ["--iterations 100000000", "at most 99999999"]),
        ({"workers": 10**6}, ["--workers", "at most"]),
        ({"devices": 10**6}, ["--devices", "at most"]),
        ({"log_every": 10**30}, ["--log-every of many digits", "at most"]),
        ({"checkpoint_every": 10**9}, ["--checkpoint-every", "at most"]),
        ({"warmup": 10**9}, ["--warmup", "at most"]),
        ({"loss_stride": 10**9}, ["--loss-stride", "at most"]),
        ({"seed": 2**63}, ["--seed", "at most"]),
        ({"lr": math.inf}, ["--lr inf", "finite"]),
        ({"lr": math.nan}, ["--lr nan", "finite"]),
        ({"lr": 10**400}, ["--lr of many digits", "finite"]),
        ({"glm": "median"}, ["--glm median", "attention", "off"]),
        ({"glm": "off", "ce": False, "nel": False, "generate": False}, ["--glm off"]),
    ],
    ids=str,
)
def test_an_invalid_setting_in_a_file_is_reported_in_one_line(tmp_path, stored, words):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    refused(lambda: read_config(tmp_path / "config.json"), *words, kind=UsageError)


def test_infinite_nan_and_huge_numbers_are_refused(tmp_path):
    for name, value in asdict(TrainConfig()).items():
        if type(value) in (int, float):
            for bad in (math.inf, -math.inf, math.nan, 10**400, -(10**400)):
                (tmp_path / "config.json").write_text(json.dumps({name: bad}))
                refused(lambda: read_config(tmp_path / "config.json"), f"--{name.replace('_', '-')} ", kind=UsageError)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_file_that_is_not_a_json_object_is_reported_in_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    refused(lambda: read_config(tmp_path / "config.json"), "--config")


def test_a_missing_config_file_is_reported_in_one_line(tmp_path):
    refused(lambda: read_config(tmp_path / "none.json"), "--config", "none.json")


def test_defaults_are_those_of_the_paper():
    expected = {"bank": 24, "tau": 0.07, "lr": 6e-5, "head_lr": 10.0, "weight_decay": 0.01, "warmup": 1500}
    expected |= {"poly_power": 1.0, "batch_size": 16, "weight_focal": 100.0, "weight_dice": 1.0, "loss_stride": 1}
    expected |= {"weight_global": 1.0, "max_grad_norm": 0.0}
    expected |= {"glm": "attention", "vla": "transformer", "logits": "cosine", "nel_ignore": "negative"}
    assert {name: default_of(TrainConfig, name) for name in expected} == expected


def test_every_setting_has_a_help_sentence():
    assert asdict(TrainConfig()).keys() == {entry.name for entry in fields(TrainConfig)}
    for entry in fields(TrainConfig):
        assert help_of(TrainConfig, entry.name).endswith(".")
