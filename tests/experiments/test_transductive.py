"""`train --transductive` as a user sees it: which gamma its student has, and where the setting is stated."""

from dataclasses import replace

import pytest
from command_line import STUDENT
from folders import make_cache
from refusals import refused

from data_cache.errors import UsageError
from experiments.history import read_run
from experiments.report import RunReport
from experiments.report_page import method
from experiments.reproduce_config import ReproduceConfig
from experiments.sharing.model_card import SETTINGS
from experiments.zero_shot import load_segmenter
from pipeline.teacher.names import TINY
from trainer.config import TrainConfig


@pytest.fixture
def run(clipteacher, tmp_path):
    """A run of one update on a few synthetic scenes."""
    given = {"dataset": "scenes", "clip": TINY, "clip_weights": None, "limit": 4}
    cache = make_cache(None, tmp_path / "scenes.zarr", **given)
    options = ("--cache", cache, "--out", tmp_path / "run", "--iterations", 1, "--batch-size", 2, "--size", 64)
    clipteacher.good("train", "--transductive", *options, *STUDENT)
    return tmp_path / "run"


def test_a_transductive_student_has_gamma_0_unless_another_is_requested(clipteacher, run):
    where = ("--dataset", "scenes", "--split", "tune", "--limit", 2, "--device", "cpu")
    result = clipteacher.good("evaluate", run, *where, "--json").json
    assert (result["gamma"], result["setting"]) == (0, "transductive")
    assert clipteacher.good("evaluate", run, *where, "--gamma", 2, "--json").json["gamma"] == 2
    assert "transductive: the names of the unseen classes were known" in clipteacher.good("evaluate", run, *where).out
    segmenter = load_segmenter(run, "cpu")
    assert "transductive" in repr(segmenter)
    assert segmenter.checkpoint.gamma() == 0
    assert segmenter.checkpoint.gamma(1.5) == 1.5


def test_report_and_model_card_state_the_setting(run):
    assert method(RunReport(read_run(run)))["Setting"].startswith("transductive")
    assert "transductive" in SETTINGS


def test_an_inductive_student_keeps_the_papers_gamma():
    assert TrainConfig().gamma == 1.5
    assert TrainConfig(transductive=True).gamma == 0


def test_reproduce_has_a_transductive_row_with_a_run_and_dense_tokens_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = ReproduceConfig("voc", changed={"transductive": True})
    assert config.train.transductive
    assert config.train.gamma == 0
    assert config.departures == ["transductive=True instead of False"]
    assert config.run == ReproduceConfig("voc").run.with_name("voc_segformer-b4_transductive")
    assert (config.precompute.dense, ReproduceConfig("voc").precompute.dense) == ("int8", "none")
    assert replace(config, changed={"transductive": True, "dense": "float16"}).precompute.dense == "float16"


def test_reproduce_refuses_a_cache_without_dense_tokens_before_stage_1(clipteacher, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {"dataset": "scenes", "clip": TINY, "clip_weights": None, "limit": 2, "dense": "none"}
    make_cache(None, tmp_path / "data_cache/voc.zarr", **given)
    failed = clipteacher("reproduce", "voc", "--transductive", "--dry-run").error
    assert "--transductive: needs dense tokens" in failed
    assert "pass another --cache" in failed
    assert ReproduceConfig("voc", changed={"transductive": True, "cache": tmp_path / "new"}).precompute.dense == "int8"
    refused(
        lambda: ReproduceConfig("voc", changed={"transductive": True, "dense": "none"}).precompute,
        "omit --dense none",
        kind=UsageError,
    )
