"""Resuming: what must match the run, and what replaces damaged files."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from cards import change_card
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from refusals import refused
from safetensors.torch import load_file, save_file

from data_cache.errors import UsageError, UserError
from trainer import loop
from trainer.card import CARD, HASHES
from trainer.checkpoint import MODEL, RESUME
from trainer.checkpoint_folders import latest
from trainer.config import CONFIG
from trainer.loop import train
from trainer.run import run_config

GROWTH = 3
"""Updates after which the scaler of these tests doubles its scale."""


@pytest.fixture
def run(tiny_config, tmp_path):
    train(tiny_config(iterations=2), tmp_path / "run")
    return tmp_path / "run"


def test_resuming_from_a_cache_with_other_content_is_refused(run, tiny_config):
    change_card(run, lambda card: card["clip"].update(weights_sha256="another"))
    with pytest.raises(UsageError, match="the cache's clip differs"):
        train(tiny_config(iterations=2), run, resume=True)


@pytest.mark.parametrize("name", [CARD, RESUME])
def test_a_damaged_resume_state_is_reported_in_one_line(run, tiny_config, name):
    file = latest(run) / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or foreign checkpoint") as caught:
        train(tiny_config(iterations=2), run, resume=True)
    assert "\n" not in str(caught.value)


def test_resuming_a_finished_run_changes_nothing(run, tiny_config):
    files = {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}
    train(tiny_config(iterations=2), run, resume=True)
    assert files == {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}


def test_a_resumed_run_may_be_compiled_or_no_longer(run, tiny_config):
    for compiled in (True, False):
        train(tiny_config(iterations=2, compile=compiled), run, resume=True)
        assert json.loads((run / CONFIG).read_text())["compile"] is compiled


def test_a_setting_added_after_the_run_has_its_default(run, tiny_config):
    change_card(run, lambda card: card["config"].pop("max_grad_norm"))
    train(tiny_config(iterations=2), run, resume=True)
    with pytest.raises(UsageError, match="--max-grad-norm differs"):
        train(tiny_config(iterations=2, max_grad_norm=1.0), run, resume=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", None])
def test_a_missing_or_damaged_config_is_replaced_by_the_newest_checkpoint(run, content):
    config, messages = run_config(run, print), []
    if content is None:
        (run / CONFIG).unlink()
    else:
        (run / CONFIG).write_bytes(content)
    assert run_config(run, messages.append) == config
    assert run_config(run, messages.append, seed=7) == replace(config, seed=7)
    assert len(messages) == 2
    assert "step_00000002" in messages[0]
    assert "\n" not in messages[0]


def test_an_invalid_setting_in_the_run_config_is_refused(run):
    (run / CONFIG).write_text('{"batch_size": 0}')
    refused(lambda: run_config(run, print), "--batch-size 0", kind=UsageError)


def test_a_damaged_config_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / CONFIG).write_bytes(b"")
    refused(lambda: run_config(tmp_path, print), CONFIG, "cannot be read")


@pytest.fixture
def float16(monkeypatch):
    """Precision 16-mixed on the CPU, where Fabric itself would choose bfloat16."""

    def fabric(config):
        assert config.precision == "16-mixed"
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=GROWTH)
        return Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", "cpu", scaler))

    monkeypatch.setattr(loop, "_fabric", fabric)


def resume_tensors(run):
    return load_file(latest(run) / RESUME)


@pytest.mark.usefixtures("float16")
def test_a_run_in_float16_resumes_with_the_scale_of_its_loss_bit_for_bit(tiny_config, tmp_path):
    config = tiny_config(iterations=2 * GROWTH, precision="16-mixed", checkpoint_every=GROWTH + 1)
    train(config, tmp_path / "complete")

    def kill(line):
        if line["step"] == GROWTH + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "killed", on_update=kill)
    saved = resume_tensors(tmp_path / "killed")
    assert (saved["scaler.scale"], saved["scaler._growth_tracker"]) == (2.0**9, 1)
    train(config, tmp_path / "killed", resume=True)
    assert resume_tensors(tmp_path / "complete")["scaler.scale"] == 2.0**10
    for file in (MODEL, RESUME):
        complete, resumed = (load_file(latest(tmp_path / run) / file) for run in ("complete", "killed"))
        assert complete.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in complete.items())


@pytest.mark.usefixtures("float16")
def test_a_run_in_float16_saved_without_its_scale_resumes_with_the_default(tiny_config, tmp_path):
    config, run = tiny_config(iterations=GROWTH + 1, precision="16-mixed"), tmp_path / "run"
    train(config, run)
    file = latest(run) / RESUME
    save_file({name: value for name, value in load_file(file).items() if not name.startswith("scaler.")}, file)
    change_card(run, lambda card: card[HASHES].update({RESUME: hashlib.sha256(file.read_bytes()).hexdigest()}))
    change_card(run, lambda card: card["config"].update(iterations=GROWTH + 2))
    train(replace(config, iterations=GROWTH + 2), run, resume=True)
    assert resume_tensors(run)["scaler.scale"] == 2.0**8
