"""Every setting of training can be read without running anything: `train --print-config`, docs/settings.md."""

import json
import runpy
import subprocess
import sys
from dataclasses import fields

import pytest
from command_line import REPOSITORY, in_a_process

from trainer.config import TrainConfig


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """Runs `train --print-config` where there is no cache."""

    def run(*options):
        code = "import cli, sys; sys.argv[0] = 'cli.py'\ntry: cli.main()\nfinally: assert 'torch' not in sys.modules"
        command = [sys.executable, "-c", code, "train", "--print-config", *map(str, options)]
        environment = {"PYTHONPATH": str(REPOSITORY), "PATH": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_print_config_has_every_setting_without_a_cache_or_torch(printed):
    settings = printed("--preset", "voc", "--lr", 0.5, "--compile")
    assert list(settings) == [entry.name for entry in fields(TrainConfig)]
    assert settings["lr"]["value"] == 0.5
    assert settings["lr"]["default"] == 6e-5
    assert settings["compile"]["value"] is True
    assert settings["encoder"]["value"] == "mit_b4"
    assert settings["glm"]["choices"] == ["attention", "max", "mean", "off"]
    assert all(entry["help"].endswith(".") for entry in settings.values())


def test_print_config_shows_the_values_of_a_config_file(printed, tmp_path):
    TrainConfig(bank=7).save(tmp_path / "config.json")
    assert printed("--config", tmp_path / "config.json")["bank"]["value"] == 7


def test_invalid_settings_are_refused_rather_than_printed():
    done = in_a_process("train", "--print-config", "--lr", -1)
    assert (done.returncode, done.stdout) == (2, "")


def test_the_page_of_settings_is_current():
    page = runpy.run_path(str(REPOSITORY / "docs/settings.py"))["page"]
    assert (REPOSITORY / "docs/settings.md").read_text() == page(), "run `python docs/settings.py`"
