"""`reproduce`: presets, the plan, and all stages on small datasets, killed at each stage."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import REPOSITORY, in_a_process
from drawing import ade_tree
from pascal_trees import STEMS, context_tree, draw_list, voc_tree
from refusals import refused

from data_cache.errors import UsageError
from data_cache.splits import Split
from experiments.open_vocabulary import compared_datasets, methods
from experiments.presets import PRESETS, STUDENTS, paper
from experiments.reproduce import ReproducedRow, Reproduction
from experiments.reproduce_config import ReproduceConfig
from pipeline.config import PrecomputeConfig
from trainer.card import CARD
from trainer.config import TrainConfig
from trainer.evaluate import Evaluation
from trainer.metrics import Metrics
from trainer.segmenter import Vocabulary

RUNS = ("coco_segformer-b0", "coco_segformer-b0_cosine")
SMALL = (
    *("--clip", "tiny", "--image-size", 64, "--student", "segformer-b0", "--encoder-weights", "none"),
    *("--size", 64, "--batch-size", 2, "--iterations", 4, "--checkpoint-every", 2, "--workers", 0, "--device", "cpu"),
)


@pytest.mark.parametrize(
    ("name", "iterations", "prompts", "dataset"),
    [
        ("voc", 20000, "single", "voc"),
        ("context", 40000, "zegclip15", "context"),
        ("coco", 80000, "zegclip15", "coco"),
        ("context-ablation", 20000, "zegclip15", "context"),
    ],
)
def test_presets_match_the_papers_settings(name, iterations, prompts, dataset):
    preset = PRESETS[name]
    settings, config = PrecomputeConfig(**preset.precompute({})), TrainConfig(**preset.train())
    assert (settings.dataset, settings.prompt_set.name, settings.image_size) == (dataset, prompts, 512)
    assert settings.views == 4
    assert (settings.clip, settings.clip_weights) == ("ViT-B-16-quickgelu", "openai")
    expected = {
        "iterations": iterations,
        "batch_size": 16,
        "size": 512,
        "lr": 6e-5,
        "weight_decay": 0.01,
        "warmup": 1500,
        "poly_power": 1.0,
        "head_lr": 10.0,
        "bank": 24,
        "tau": 0.07,
        "loss_stride": 1,
        "logits": "dot",
        "encoder": "mit_b0" if name == "context-ablation" else "mit_b4",
        **{"weight_focal": 100.0, "weight_dice": 1.0, "glm": "attention", "vla": "transformer"},
    }
    assert expected.items() <= asdict(config).items()
    assert preset.evaluate == {"dataset": dataset, "split": "val", "sliding": False}


def test_head_learning_rate_is_tenfold_except_for_swin():
    rates = {name: TrainConfig(**PRESETS["coco"].train(name)).head_lr for name in STUDENTS}
    assert rates == {"segformer-b4": 10, "swin-b": 1, "segnext-b": 10, "segformer-b0": 10}


def test_each_student_has_a_row_in_both_tables():
    for student in ("segformer-b4", "swin-b", "segnext-b"):
        for benchmark in ("voc", "coco", "context"):
            assert len(ReproduceConfig(benchmark, student).row(benchmark)) == 4
        for target in ("voc", "context"):
            row = ReproduceConfig("coco", student, test_on=target).row(target)
            assert row == paper()["table 2"][target][student]
    assert ReproduceConfig("context-ablation").row("context") == [74.8, 41.0, 50.7, 45.4]


def test_another_clip_uses_its_own_weights_and_size():
    clip = ReproduceConfig("coco", changed={"clip": "tiny"}).precompute.clip_source
    assert (clip.clip, clip.weights, clip.image_size) == ("tiny", "scenes", None)


def test_departures_from_the_preset_are_listed():
    result = ReproduceConfig("coco", limit=9, changed={"iterations": 5, "size": 512}).departures
    assert result == ["iterations=5 instead of 80000", "only the first 9 images"]
    assert ReproduceConfig("coco", changed={"loss_stride": 4, "workers": 9}).departures == [
        "loss_stride=4 instead of 1"
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"benchmark": "ade"}, "voc, context, coco"),
        ({"benchmark": "voc", "student": "b9"}, "segformer-b4, swin-b"),
        ({"benchmark": "coco", "test_on": "camvid"}, "--test-on camvid"),
        ({"benchmark": "coco", "test_on": "ade150,camvid"}, "--test-on ade150,camvid"),
        ({"benchmark": "coco", "test_on": "ade150,"}, "--test-on ade150,"),
        ({"benchmark": "voc", "test_on": "context"}, "trained on coco"),
        ({"benchmark": "coco", "test_root": Path("somewhere")}, "pass --test-on"),
    ],
)
def test_unknown_names_are_usage_errors(given, words):
    refused(lambda: ReproduceConfig(**given), words, kind=UsageError)


@pytest.fixture
def coco(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_coco(tmp_path / "coco")
    return ("coco", "--root", tmp_path / "coco", *SMALL)


def draw_coco(root):
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, count in {"train2017": 5, "val2017": 2}.items():
        for number in range(count):
            label = rng.choice(np.array([0, 20, 123, 181, 255], np.uint8), (3, 3)).repeat(30, 0).repeat(30, 1)
            image = rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)
            for kind, array, ending in (("images", image, "jpg"), ("stuffthingmaps_trainval2017", label, "png")):
                folder = root / kind / split
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{number:012}.{ending}")


def test_row_is_printed_and_saved_with_the_papers(clipteacher, coco, tmp_path):
    result = clipteacher.good("reproduce", *coco)
    assert "iterations=4 instead of 80000" in result.out
    assert "train has 5 images; the published list has 118,287" in result.err
    stored = json.loads((tmp_path / "runs/coco_segformer-b0/coco.json").read_text())
    assert stored["metrics"].keys() == {*Metrics.ALL_COLUMNS, "gamma", "per_class", "unseen"}
    again = clipteacher.good("reproduce", *coco, "--json").json
    assert again["metrics"] == stored["metrics"]


@pytest.mark.parametrize(
    ("gamma", "words"), [(1.5, "gamma 1.5 is the paper's;"), (0.0, "gamma 0 was added; the paper's is 1.5;")]
)
def test_gamma_is_called_the_papers_only_if_it_is(tmp_path, monkeypatch, gamma, words):
    monkeypatch.chdir(tmp_path)
    vocabulary = Vocabulary(Split(("sky", "cow"), ("cow",)), torch.eye(2), np.array([True, False]))
    evaluation = Evaluation(vocabulary, {gamma: np.eye(2, dtype=int)})
    row = ReproducedRow(ReproduceConfig("coco", "segformer-b0"), "coco", evaluation, {})
    assert any(line.startswith(words) for line in Reproduction((row,)).lines)


def test_table_2_rows_are_evaluated_with_both_vocabularies(clipteacher, coco, tmp_path):
    from PIL import Image

    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(np.zeros((80, 90, 3), np.uint8)).save(root / "JPEGImages/a.jpg")
    Image.fromarray(np.resize(np.array([0, 10, 15, 20], np.uint8), (80, 90))).save(root / "SegmentationClass/a.png")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    result = clipteacher.good("reproduce", *coco, "--test-on", "voc", "--test-root", root, "--json").json
    assert len(result["metrics"]["per_class"]) == 20
    assert "by_training_vocabulary" in result["metrics"]
    assert "by training vocabulary" in clipteacher.good("reproduce", *coco, "--test-on", "voc", "--test-root", root).out


def draw_open_vocabularies(root):
    for folder in ("ade150", "context", "voc"):
        (root / folder).mkdir(parents=True)
    ade_tree(root / "ade150")
    context_tree(root / "context", converted=False)
    voc_tree(root / "voc")
    for dataset, stems in (("context/ImageSets/Main", STEMS), ("voc/ImageSets/Segmentation", STEMS)):
        draw_list(root / dataset / "val.txt", stems)


def test_open_vocabularies_are_tabled_with_published_figures(clipteacher, coco, tmp_path):
    draw_open_vocabularies(tmp_path / "others")
    tests = "ade150,context459,context59,voc20"
    command = ("reproduce", *coco, "--test-on", tests, "--test-root", tmp_path / "others")
    result = clipteacher.good(*command, "--json").json["tests"]
    assert list(result) == tests.split(",")
    lines = clipteacher.good(*command).out.splitlines()
    assert lines[0].split() == ["mIoU", *tests.split(",")]
    table = {line[:32].strip(): line[32:].split() for line in lines[1:8]}
    assert table["CAT-Seg (ViT-B/16)"] == ["31.8", "19.0", "57.5", "94.6"]
    for name, key in (
        ("ours (segformer-b0, dot)", "mIoU"),
        ("with labels in training (S)", "mIoU_S"),
        ("without (U)", "mIoU_U"),
    ):
        figures = [row["metrics"][key] for row in result.values()]
        assert table[name] == ["nan" if figure is None else f"{100 * figure:.1f}" for figure in figures]
    assert sum("https://github.com/" in line for line in lines) == len(methods()) == 4
    assert result["ade150"]["published"]["SAN (ViT-B/16)"] == pytest.approx(0.276)
    assert json.loads((tmp_path / "runs/coco_segformer-b0/context459.json").read_text()) | {"seconds": 0} == (
        result["context459"] | {"seconds": 0}
    )
    plan = clipteacher.good(*command, "--dry-run").out
    assert "to train on, 2 of ade150, 2 of context459, 2 of context59, 2 of voc20 to test on" in plan


def test_the_page_has_the_published_figures():
    page = (REPOSITORY / "docs/open-vocabulary.md").read_text()
    for name, method in methods().items():
        assert f"| {name} | {' | '.join(f'{figure:.1f}' for figure in method.figures.values())} |" in page


def test_every_published_figure_has_a_source_and_is_a_percentage():
    assert set(compared_datasets()) == {"ade150", "context459", "context59", "voc20"}
    for method in methods().values():
        assert "https://github.com/" in method.source
        assert all(5 < figure < 100 for figure in method.figures.values())


@pytest.mark.parametrize("student", ["segformer-b4", "swin-b", "segnext-b"])
def test_dry_run_prints_the_plan_and_writes_nothing(clipteacher, coco, tmp_path, student):
    before = sorted(tmp_path.rglob("*"))
    result = clipteacher.good(
        "reproduce", "coco", "--root", tmp_path / "coco", "--student", student, "--dry-run", "--json"
    )
    plan = result.json
    assert (plan["images"], plan["views"], plan["iterations"]) == (5, 4, 80000)
    assert plan["cache_bytes"] == 5 * 4 * (512 * 2 + 32 * 32)
    low, high = plan["gpu_bytes_about"]
    assert 16 * plan["parameters"] < low < high
    assert (plan["tested"], plan["cache_exists"]) == (2, False)
    expected = dict(zip(("pAcc", "mIoU_S", "mIoU_U", "hIoU"), paper()["table 1"]["coco"][student], strict=True))
    assert plan["paper"] == {name: pytest.approx(value / 100) for name, value in expected.items()}
    assert plan["missing"] == []
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("row", "images", "tested"),
    [
        (("coco",), "118,287", "5,000 of coco"),
        (("voc",), "10,582", "1,449 of voc"),
        (("context",), "4,998", "5,105 of context"),
        (("coco", "--test-on", "voc"), "118,287", "1,449 of voc"),
    ],
)
def test_dry_run_without_the_data_uses_published_numbers(clipteacher, tmp_path, monkeypatch, row, images, tested):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPTEACHER_DATA", raising=False)
    plan = clipteacher.good("reproduce", *row, "--student", "segformer-b4", "--dry-run").out
    assert f"{images} to train on, {tested} to test on" in plan
    assert re.search(r"cache +[\d.]+ GiB in data_cache/", plan)
    assert re.search(r"GPU memory +[\d.]+ to [\d.]+ GiB", plan)
    assert re.search(r"pAcc +mIoU\(S\) +mIoU\(U\) +hIoU\npaper( +[\d.]+){4}\n", plan)
    missing = [line for line in plan.splitlines() if line.endswith("its numbers of images are the published ones")]
    assert [line.removeprefix("note: ").split()[0] for line in missing] == [name for name in row if name != "--test-on"]
    assert not [*tmp_path.iterdir()]


def test_dry_run_refuses_a_root_without_the_data(clipteacher, tmp_path):
    command = ("reproduce", "coco", "--dry-run")
    assert "no such folder" in clipteacher(*command, "--root", tmp_path / "typo").error
    assert "pass --test-root" in clipteacher(*command, "--test-on", "voc", "--test-root", tmp_path / "typo").error


def test_probe_measures_the_hours_of_every_stage_without_data(clipteacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPTEACHER_DATA", raising=False)
    report = clipteacher.good("reproduce", "voc", *SMALL, "--probe", "--json").json
    assert (report["images"], report["tested"], report["iterations"]) == (10582, 1449, 4)
    probe = report["probe"]
    assert probe["device"].startswith("CPU")
    assert probe["measured"]["updates"] == 4
    assert probe["measured"]["views"] % 4 == 0
    assert probe["measured"]["images"] == min(8, probe["measured"]["views"])
    seconds, hours = probe["seconds"], probe["hours"]
    assert min(seconds.values()) > 0
    assert hours["precompute"] == pytest.approx(10582 * 4 * seconds["view"] / 3600)
    assert hours["train"] == pytest.approx(4 * seconds["update"] / 3600)
    assert hours["evaluate"] == pytest.approx(1449 * seconds["image"] / 3600)
    assert hours["total"] == pytest.approx(hours["precompute"] + hours["train"] + hours["evaluate"])
    assert not [*tmp_path.iterdir()]


def test_probe_of_slow_stages_ends_after_two_updates_and_two_images(clipteacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.probe.SECONDS", 0.0)
    out = clipteacher.good("reproduce", "voc", *SMALL, "--iterations", 80000, "--probe").out
    assert re.search(r"measured +\d+ views, 2 updates \(no more, because .*\) and 2 test images\n", out)
    assert re.search(r"stage 1 +\d+:\d\d:\d\d for 42,328 views", out)
    assert re.search(r"training +\d+:\d\d:\d\d for 80,000 updates \([\d.]+ s\)\n", out)
    assert re.search(r"in all +\d+:\d\d:\d\d \(h:mm:ss\), extrapolated", out)
    assert not [*tmp_path.iterdir()]


def test_student_errors_are_reported_before_clip_runs(clipteacher, coco, tmp_path):
    for more, words in (
        (("--student", "segnext-b", "--encoder-weights", "imagenet"), "mscan_b has no weights to download"),
        (("--encoder-weights", "/nope/weights.pth"), "no such file"),
        (("--size", 65), "must be a multiple of 32"),
    ):
        assert words in clipteacher("reproduce", *coco, *more).error
    assert not (tmp_path / "data_cache").exists()


def test_reproduce_resumes_after_the_images_moved(clipteacher, coco, tmp_path):
    expected = clipteacher.good("reproduce", *coco, "--json").json
    moved = (tmp_path / "coco").rename(tmp_path / "moved")
    again = clipteacher.good("reproduce", "coco", "--root", moved, *coco[3:], "--json").json
    assert again["metrics"] == expected["metrics"]
    step = next((tmp_path / "runs/coco_segformer-b0").glob("step_*"))
    where = ("--dataset", "coco", "--root", moved, "--pick-gamma", 500, "--device", "cpu")
    assert clipteacher(*("evaluate", step.parent), *where).status in (
        0,
        1,
    )  # an untrained student may get no pixel right
    clipteacher.good("reproduce", "coco", "--root", moved, *coco[3:], "--iterations", 6, "--out", tmp_path / "more")


def test_existing_cache_with_dense_tokens_is_reused(clipteacher, coco, tmp_path):
    clip = ("--clip", "tiny", "--image-size", 64, "--device", "cpu")
    clipteacher.good("precompute", "--dataset", "coco", "--root", tmp_path / "coco", "--views", 4, *clip)
    clipteacher.good("reproduce", *coco)


KILL = "import os, signal\ndef die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
STAGES = {
    "precompute": KILL
    + """
from data_cache.journal import Journal
commit = Journal.commit
Journal.commit = lambda s, *a: die() if s._array.path == "masks/default/journal" else commit(s, *a)
""",
    "train": KILL
    + """
from trainer import loop
calls = []
loop.nonfinite_term = lambda losses: calls.append(1) or (die() if len(calls) == 4 else None)
""",
    "evaluate": KILL + "import trainer.metrics as m\nm.ConfusionMatrix.update = die\n",
}
RECORD_WORK = """
import json, os
from trainer import loop
from pipeline import encode
restore, shard = loop.restore, encode.Encoder.shard
def record(word):
    with open(os.environ["RECORD"], "a") as file: file.write(word + " ")
def restored(*a):
    step = restore(*a)
    record(f"resumed-at-{step}")
    return step
def encoded(self, number, *a):
    record(f"encoded-{number}")
    return shard(self, number, *a)
loop.restore, encode.Encoder.shard = restored, encoded
"""


@pytest.mark.slow
def test_row_is_unchanged_after_a_kill_at_each_stage(clipteacher, coco, tmp_path):
    expected = clipteacher.good("reproduce", *coco, "--json").json
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    options, record, work = ("reproduce", *coco, "--out", fresh / "run", "--json"), tmp_path / "record", []
    environment = {"CLIPTEACHER_CACHE": str(fresh), "RECORD": str(record)}
    for prelude in STAGES.values():
        assert in_a_process(*options, prelude=RECORD_WORK + prelude, **environment).returncode == -9
        work.append(record.read_text().split())
        record.write_text("")
    # killed before the first shard is committed, then at update 4 (last checkpoint: 2), then during evaluation
    assert work == [["encoded-0"], ["encoded-0"], ["resumed-at-2"]]
    last = in_a_process(*options, prelude=RECORD_WORK, **environment)
    assert last.returncode == 0, last.stderr
    assert record.read_text().split() == ["resumed-at-4"]
    assert json.loads(last.stdout)["metrics"] == expected["metrics"]


def test_presets_are_printed_and_options_override_them(clipteacher, coco, tmp_path):
    small = ("--clip", "tiny", "--image-size", 64, "--device", "cpu")
    result = clipteacher.good("precompute", "--preset", "coco", "--root", tmp_path / "coco", *small, "--json")
    assert "preset coco: PrecomputeConfig(dataset='coco'" in result.err
    assert (tmp_path / "data_cache/coco.zarr").is_dir()
    short = ("--iterations", 1, "--batch-size", 2, "--size", 64, "--workers", 0, "--encoder-weights", "none")
    trained = clipteacher.good(
        "train", "--preset", "coco", "--student", "segformer-b0", *short, "--device", "cpu", "--json"
    )
    for word in ("segformer with mit_b0", "1 update of 2 images", "iterations=1 ", "logits=dot"):
        assert word in trained.err
    assert trained.json["peak_bytes"] > 2**26
    result = clipteacher.good(
        "evaluate", "runs/coco", "--preset", "coco", "--root", tmp_path / "coco", "--gamma", "0,2", "--json"
    )
    assert "preset coco: EvaluateConfig(" in result.err
    assert [one["gamma"] for one in result.json["sweep"]] == [0, 2]
    assert result.json["gamma"] == 0


@pytest.mark.parametrize("gamma", ["nan", "1,x", "inf", ""])
def test_non_numeric_gammas_are_usage_errors(clipteacher, tmp_path, gamma):
    result = clipteacher("evaluate", tmp_path, "--dataset", "coco", "--gamma", gamma)
    assert result.status == 2
    assert "--gamma" in result.error
    assert re.search("must be (a finite number|numbers)", result.error)


@pytest.mark.parametrize("command", [("precompute",), ("evaluate", ".")])
def test_dataset_or_preset_is_required(clipteacher, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / CARD).write_text("{}")
    result = clipteacher(*command)
    assert result.status == 2
    assert "--preset" in result.error


def test_both_readings_of_eq_9_are_runs_of_their_own_and_printed_together(clipteacher, coco, tmp_path):
    plan = clipteacher.good("reproduce", *coco, "--dry-run")
    assert (
        "dot: eq. 9 as the plain product as printed; cosine (cosine / tau) is another run: --logits cosine" in plan.out
    )
    first = clipteacher.good("reproduce", *coco)
    assert "ours, logits dot" in first.out
    assert "the other reading of eq. 9, cosine / tau: pass --logits cosine" in first.out
    both = clipteacher.good("reproduce", *coco, "--logits", "cosine")
    assert "not the paper's settings: logits=cosine instead of dot" in both.out
    rows = {
        name: line.split()[-4:]
        for line in both.out.splitlines()
        for name in ("dot", "cosine")
        if f"ours, logits {name}" in line
    }
    stored = {run: json.loads((tmp_path / f"runs/{run}/coco.json").read_text()) for run in RUNS}
    for (run, row), name in zip(stored.items(), ("dot", "cosine"), strict=True):
        assert (row["logits"], row["run"]) == (name, f"runs/{run}")
        assert rows[name] == [f"{100 * row['metrics'][column]:.1f}" for column in ("pAcc", "mIoU_S", "mIoU_U", "hIoU")]
    other = clipteacher.good("reproduce", *coco, "--iterations", 3, "--out", tmp_path / "short", "--json").json
    assert other["other_reading"] == {}
