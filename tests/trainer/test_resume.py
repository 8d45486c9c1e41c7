"""Resuming: what must match the run, and what replaces damaged files."""

import json
from dataclasses import replace

import pytest
from cards import change_card
from refusals import refused

from data_cache.errors import UsageError, UserError
from trainer.card import CARD
from trainer.checkpoint import RESUME
from trainer.checkpoint_folders import latest
from trainer.config import CONFIG
from trainer.loop import train
from trainer.run import run_config


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
