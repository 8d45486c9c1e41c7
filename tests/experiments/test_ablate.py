"""`ablate`: variants override existing settings, runs resume, and the table reports all results."""

import json
import os

import numpy as np
import pytest
import torch
from command_line import TINY, folder_options
from refusals import refused

from data_cache.errors import UsageError, UserError
from data_cache.reader import Cache
from experiments import ablate as ablations
from experiments.ablate_config import DOT, FULL, VARIANTS, AblateConfig
from experiments.presets import paper
from trainer.checkpoint import load
from trainer.config import TrainConfig

ROWS = "full,no-glm,lambda-0.9"


@pytest.fixture
def cache(clipteacher, drawn, tmp_path):
    clipteacher.good("precompute", *folder_options(drawn), *TINY, "--cache", tmp_path / "c.zarr")
    small = {"size": 64, "batch_size": 2, "device": "cpu", "workers": 0, "encoder_weights": "none", "iterations": 2}
    (tmp_path / "config.json").write_text(json.dumps(small))
    return tmp_path / "c.zarr"


@pytest.fixture
def options(cache, tmp_path):
    return ("--cache", cache, "--config", tmp_path / "config.json", "--out", tmp_path / "out", "--seeds", 2)


@pytest.mark.parametrize("row", VARIANTS)
def test_variants_override_existing_train_settings(row):
    config = TrainConfig(**VARIANTS[row].train)
    changed = [name for name, value in vars(config).items() if value != getattr(TrainConfig(), name)]
    assert set(changed) <= set(VARIANTS[row].train)
    assert bool(changed or VARIANTS[row].cluster) or row in (FULL, "loss-stride-1", "weight-global-1")


def test_all_rows_of_tables_3_to_5_are_variants():
    assert set(paper()["ablations"]) <= set(VARIANTS)
    assert {VARIANTS[row].table for row in paper()["ablations"]} == {"full method", "Table 3", "Table 4", "Table 5"}


def test_every_row_of_tables_3_to_5_also_exists_with_eq_9_as_printed():
    for row in paper()["ablations"]:
        dot = VARIANTS[DOT if row == FULL else f"{row}-dot"]
        assert dot.train == {**VARIANTS[row].train, "logits": "dot"}
        assert (dot.table, dot.paper) == (VARIANTS[row].table, row)
        assert row == FULL or dot.baseline == DOT
    assert DOT in AblateConfig().names
    assert not [row for row in AblateConfig().names if row.endswith("-dot") and row != DOT]


def test_table_compares_a_row_with_dot_logits_to_the_full_method_with_them():
    rows = ("full", "logits-dot", "vla-mlp", "vla-mlp-dot")
    metrics = {
        row: {name: {"pAcc": 0.9, "mIoU_S": 0.5, "mIoU_U": 0.5, "hIoU": hiou} for name in ("0", "1.5", "5")}
        for row, hiou in zip(rows, (0.8, 0.4, 0.7, 0.35), strict=True)
    }
    report = {"rows": {row: [{"seed": 0, "picked": None, "metrics": metrics[row]}] for row in rows}}
    lines = {line.split(" | ")[1]: line for line in ablations.markdown(report).splitlines() if " | 1.5 | " in line}
    assert lines["logits-dot"].endswith("| -40.0 | 74.8/41.0/50.7/45.4 |")
    assert lines["vla-mlp"].endswith("| -10.0 | 74.9/40.8/50.8/45.2 |")
    assert lines["vla-mlp-dot"].endswith("| -5.0 | 74.9/40.8/50.8/45.2 |")


def test_table_reports_mean_std_and_the_papers_figures(clipteacher, options, cache, tmp_path):
    process = clipteacher.good("ablate", *options, "--rows", ROWS, "--json")
    assert "6 of 6" in process.err
    result = process.json
    assert {row: len(found) for row, found in result["rows"].items()} == {"full": 2, "no-glm": 2, "lambda-0.9": 2}
    table = (tmp_path / "out/table.md").read_text()
    values = [one["metrics"]["1.5"]["pAcc"] * 100 for one in result["rows"]["full"]]
    assert f"| full | 1.5 | {np.mean(values):.1f} ± {np.std(values, ddof=1):.1f} |" in table
    assert "74.8/41.0/50.7/45.4" in table
    differences = [
        100 * (a["metrics"]["5"]["hIoU"] - b["metrics"]["5"]["hIoU"])
        for a, b in zip(*map(result["rows"].get, ("no-glm", "full")), strict=True)
    ]
    assert f"| {np.mean(differences):+.1f} ± {np.std(differences, ddof=1):.1f} | 51.9/28.2/8.6/13.2 |" in table
    lines = [line for line in table.splitlines() if "| no-glm |" in line]
    assert ["51.9/28.2/8.6/13.2" in line for line in lines] == ["| no-glm | 5 |" in line for line in lines]
    assert Cache(cache).mask_attributes("lambda_0_9")["threshold"] == 0.9
    configs = {
        run: json.loads((tmp_path / f"out/{run}/config.json").read_text()) for run in ("no-glm_1", "lambda-0.9_0")
    }
    assert (configs["no-glm_1"]["glm"], configs["no-glm_1"]["seed"]) == ("off", 1)
    assert configs["lambda-0.9_0"]["masks"] == "lambda_0_9"


def test_each_student_is_also_evaluated_at_a_picked_gamma(clipteacher, options, drawn, tmp_path):
    found = clipteacher.good("ablate", *options, "--rows", "full", "--json").json["rows"]["full"]
    run = tmp_path / "out/full_1"
    command = ("evaluate", run, "--dataset", "folder", "--root", drawn, "--pick-gamma", ablations.SAMPLES, "--json")
    result = clipteacher.good(*command).json["picked"]
    assert found[1]["picked"] == result["gamma"]
    assert found[1]["metrics"]["picked"]["hIoU"] == pytest.approx(result["hIoU"])
    table = (tmp_path / "out/table.md").read_text()
    assert f"| full | picked {found[0]['picked']:g}/{found[1]['picked']:g} |" in table


def test_failed_images_and_unpickable_gammas_do_not_stop_a_row(clipteacher, options, drawn, tmp_path, monkeypatch):
    sampled = []

    def fail_to_pick(student, images):
        sampled.extend(images.ids)
        raise UserError("no seen pixel is right")

    statuses = list(Cache(options[1]).statuses())
    broken = [(name, "damaged" if index == 1 else status) for index, (name, status) in enumerate(statuses)]
    monkeypatch.setattr(Cache, "statuses", lambda _: iter(broken))
    monkeypatch.setattr(ablations, "pick_gamma", fail_to_pick)
    found = clipteacher.good("ablate", *options[:-1], 1, "--rows", "full", "--json").json["rows"]["full"]
    assert found[0]["picked"] is None
    assert list(found[0]["metrics"]) == ["0", "1.5", "5"]
    assert "picked" not in (tmp_path / "out/table.md").read_text()
    assert sampled == [name for index, (name, _) in enumerate(statuses) if index != 1]


def test_rerun_trains_only_missing_seeds(clipteacher, options, monkeypatch):
    first = clipteacher.good("ablate", *options, "--rows", "full", "--json").json
    train, seeds = ablations.train_stage, []
    monkeypatch.setattr(
        ablations, "train_stage", lambda config, *rest: seeds.append(config.seed) or train(config, *rest)
    )
    assert clipteacher.good("ablate", *options, "--rows", "full", "--json").json["rows"] == first["rows"]
    assert seeds == []
    more = clipteacher.good("ablate", *options[:-1], 3, "--rows", "full", "--json").json
    assert seeds == [2]
    assert more["rows"]["full"][:2] == first["rows"]["full"]


def test_all_rows_of_a_seed_are_trained_before_the_next_seed(clipteacher, options, monkeypatch):
    train, trained = ablations.train_stage, []
    monkeypatch.setattr(
        ablations, "train_stage", lambda config, run, *rest: trained.append(run.name) or train(config, run, *rest)
    )
    clipteacher.good("ablate", *options, "--rows", "full,lambda-0.9")
    assert trained == ["full_0", "lambda-0.9_0", "full_1", "lambda-0.9_1"]


def test_students_start_from_the_encoder_of_a_run(clipteacher, options, cache, tmp_path, monkeypatch):
    pretrained = tmp_path / "pretrained"
    clipteacher.good("train", "--cache", cache, "--config", tmp_path / "config.json", "--out", pretrained)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((tmp_path / "config.json").read_text()) | {"lr": 0}))
    result = clipteacher.good("ablate", *options[:-1], 1, "--rows", "full,no-glm", "--start", pretrained, "--json")
    assert str(tmp_path) not in json.dumps(result.json)
    encoders = [encoder_of(tmp_path / run) for run in ("pretrained", "out/full_0", "out/no-glm_0")]
    for encoder in encoders[1:]:
        assert all(torch.equal(value, encoders[0][name]) for name, value in encoder.items())
    file = next((tmp_path / "out").glob("encoder_*.safetensors"))
    monkeypatch.setattr(ablations, "train_stage", lambda *_: pytest.fail("trained again"))
    for start in (pretrained, file):  # the same encoder: its trainings are finished
        clipteacher.good("ablate", *options[:-1], 1, "--rows", "full,no-glm", "--start", start)
    monkeypatch.undo()
    clipteacher.good("train", "--cache", cache, "--config", tmp_path / "config.json", "--out", tmp_path / "other")
    assert "encoder-weights differs" in clipteacher("ablate", *options, "--start", tmp_path / "other").error


def encoder_of(run):
    names = load(run, torch.device("cpu")).network.network.encoder.named_parameters()
    return {name: value.detach() for name, value in names}


def test_an_encoder_to_start_from_that_does_not_fit_is_refused(tmp_path, clipteacher, options, cache):
    config = ("--config", tmp_path / "config.json", "--iterations", 1)
    other = tmp_path / "other"
    clipteacher.good("train", "--cache", cache, *config, "--encoder", "resnet18", "--arch", "fpn", "--out", other)
    assert clipteacher("ablate", *options, "--start", other).error.endswith(
        f"--start {other}: its encoder is resnet18, and the students' is mit_b0; pass another run"
    )
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    error = clipteacher("ablate", *options, "--start", tmp_path / "weights.pth").error
    assert f"--start {tmp_path / 'weights.pth'}: is not a state dict of this encoder" in error
    assert "no such run" in clipteacher("ablate", *options, "--start", tmp_path / "typo").error
    assert not list((tmp_path / "out").glob("encoder_*"))


def test_rows_equal_to_the_full_method_share_its_training(clipteacher, options, tmp_path):
    result = clipteacher.good("ablate", *options, "--rows", "full,loss-stride-1", "--json")
    assert "2 of 2: full = loss-stride-1, seed 1" in result.err
    assert result.json["rows"]["full"] == result.json["rows"]["loss-stride-1"]
    assert sorted(file.name for file in (tmp_path / "out").glob("*_?")) == ["full_0", "full_1"]
    assert "| loss-stride-1 | 1.5 |" in (tmp_path / "out/table.md").read_text()


@pytest.mark.slow
def test_parallel_jobs_match_sequential_results(clipteacher, options, tmp_path):
    one = clipteacher.good("ablate", *options, "--rows", "full,no-glm", "--json").json
    environment = dict(os.environ)
    elsewhere = (*options[:5], tmp_path / "elsewhere", *options[6:])
    two = clipteacher.good("ablate", *elsewhere, "--rows", "full,no-glm", "--jobs", 2, "--json").json
    assert os.environ == environment
    for row in one["rows"]:
        for a, b in zip(one["rows"][row], two["rows"][row], strict=True):
            assert a["seed"] == b["seed"]
            for gamma, figures in a["metrics"].items():
                assert figures == pytest.approx(b["metrics"][gamma], abs=0.05)


def test_unknown_rows_and_zero_seeds_are_usage_errors(tmp_path):
    refused(lambda: AblateConfig(rows="no-such"), "--rows no-such: choose full", kind=UsageError)
    refused(lambda: AblateConfig(seeds=0), "--seeds 0", kind=UsageError)
