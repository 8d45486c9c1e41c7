import json

import pytest

from data_cache.errors import UsageError, UserError
from trainer.checkpoint import CARD, RESUME, latest
from trainer.loop import train
from trainer.resume import reopen_log


@pytest.fixture
def run(tiny_config, tmp_path):
    train(tiny_config(iterations=2), tmp_path / "run")
    return tmp_path / "run"


def test_a_cache_of_other_content_under_the_same_name_is_refused(run, tiny_config):
    file = latest(run) / CARD
    card = json.loads(file.read_text())
    card["clip"]["weights_sha256"] = "another"
    file.write_text(json.dumps(card))
    with pytest.raises(UsageError, match="the cache's clip differs"):
        train(tiny_config(iterations=2), run, resume=True)


@pytest.mark.parametrize("name", [CARD, RESUME])
def test_a_damaged_state_is_told_in_one_line(run, tiny_config, name):
    file = latest(run) / name
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or foreign checkpoint") as caught:
        train(tiny_config(iterations=2), run, resume=True)
    assert "\n" not in str(caught.value)


def test_resuming_a_finished_run_changes_nothing(run, tiny_config):
    before = {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}
    train(tiny_config(iterations=2), run, resume=True)
    assert before == {f.relative_to(run): f.read_bytes() for f in run.rglob("*") if f.is_file()}


def test_a_line_cut_off_in_writing_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    with reopen_log(path, 2) as log:
        log.write('{"step": 3}\n')
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_a_setting_younger_than_the_run_had_its_default(run, tiny_config):
    file = latest(run) / CARD
    card = json.loads(file.read_text())
    del card["config"]["max_grad_norm"]
    file.write_text(json.dumps(card))
    train(tiny_config(iterations=2), run, resume=True)
    with pytest.raises(UsageError, match="--max-grad-norm differs"):
        train(tiny_config(iterations=2, max_grad_norm=1.0), run, resume=True)
