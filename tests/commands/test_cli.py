"""The contract of the command line: what is printed, what is written, and how errors are reported."""

import json
import re
import shutil

import numpy as np
import pytest
import typer
from command_line import STUDENT, TINY, folder_options, in_a_process
from PIL import Image

import cli
from trainer.metrics import Metrics

COMMANDS = sorted(typer.main.get_command(cli.app).commands)


@pytest.fixture
def cached(clipteacher, drawn, tmp_path):
    cache = tmp_path / "folder.zarr"
    data = ("--dataset", "folder", "--root", drawn)
    clipteacher.good("precompute", *data, *TINY, "--unseen", "disc", "--cache", cache, "--shard", 4)
    return cache


def test_precompute_train_and_evaluate_end_to_end(clipteacher, cached, drawn, tmp_path):
    info = clipteacher.good("info", cached, "--json").json
    assert {"images": 6, "views": 1, "done": 6, "failed": 0, "masks": ["default"]}.items() <= info.items()
    assert info["clip"].startswith("tiny-vit")
    assert set(info["bytes"]) == {"cls", "dense", "masks"}
    assert min(info["bytes"].values()) > 0

    run = tmp_path / "run"
    trained = clipteacher.good(
        "train", "--cache", cached, "--out", run, "--iterations", 3, "--batch-size", 2, "--size", 64, *STUDENT, "--json"
    )
    assert trained.json["step"] == 3
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 3]

    result = clipteacher.good("evaluate", run, "--dataset", "folder", "--root", drawn, "--gamma", 2, "--json").json
    assert set(result) == {"dataset", "split", "setting", *Metrics.ALL_COLUMNS, "gamma", "per_class", "unseen"}
    assert (result["setting"], result["unseen"]) == ("inductive", ["disc"])
    assert result["gamma"] == 2
    assert list(result["per_class"]) == ["sky", "grass", "sand", "disc", "square", "stripe"]
    assert 0 <= result["pAcc"] <= 1
    file = next(run.glob("step_*/model.safetensors"))
    again = clipteacher.good("evaluate", file, "--dataset", "folder", "--root", drawn, "--gamma", 2, "--json")
    assert again.json == result
    sliding = clipteacher.good("evaluate", run, "--dataset", "folder", "--root", drawn, "--sliding", "--limit", 1)
    assert "hIoU" in sliding.out


def test_saved_config_reproduces_a_run(clipteacher, cached, tmp_path):
    common = ("--iterations", 2, "--batch-size", 2, "--size", 64, "--arch", "fpn", "--encoder", "resnet18", *STUDENT)
    first, second = tmp_path / "first", tmp_path / "second"
    one = clipteacher.good("train", "--cache", cached, "--out", first, *common, "--glm", "mean", "--no-nel", "--json")
    two = clipteacher.good("train", "--config", first / "config.json", "--out", second, "--json")
    same = ("step", "lr", "total", "global", "ce", "generate")
    assert [one.json[key] for key in same] == [two.json[key] for key in same]
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    assert two.json["focal"] == two.json["dice"] == 0


def test_train_prints_the_run_and_only_the_settings_that_differ_from_the_defaults(clipteacher, cached, tmp_path):
    run, student = tmp_path / "run", ("--arch", "fpn", "--encoder", "resnet18", "--size", 64, "--no-nel", *STUDENT)
    printed = clipteacher.good("train", "--cache", cached, "--out", run, "--iterations", 1, "--seed", 0, *student).err
    assert f"run {run}: fpn with resnet18, 1 update of 16 images, warm-up 0 updates" in printed
    line = next(line for line in printed.splitlines() if line.startswith("settings other than the defaults: "))
    assert dict(setting.split("=") for setting in line.split(": ")[1].split()) == {
        **{"cache": str(cached), "arch": "fpn", "encoder": "resnet18", "encoder_weights": "none", "size": "64"},
        **{"iterations": "1", "nel": "False", "device": "cpu", "workers": "0"},
    }


def test_resume_needs_only_the_run_folder(clipteacher, cached, tmp_path):
    run = tmp_path / "run"
    student = ("--arch", "fpn", "--encoder", "resnet18", "--size", 64, "--batch-size", 2, *STUDENT)
    clipteacher.good("train", "--cache", cached, "--out", run, "--iterations", 2, *student)
    before = (run / "config.json").read_text()
    assert clipteacher.good("train", "--out", run, "--resume", "--json").json["out"] == str(run)
    assert (run / "config.json").read_text() == before
    assert "--iterations differs" in clipteacher("train", "--out", run, "--resume", "--iterations", 4).error
    (run / "config.json").write_bytes(b"")
    (run / "log.jsonl").write_bytes((run / "log.jsonl").read_bytes() + b"null")
    result = clipteacher.good("train", "--out", run, "--resume").err
    assert "using the settings of step_00000002" in result
    assert "dropped 1 line that could not be read" in result
    assert (run / "config.json").read_text() == before
    assert "no run in" in clipteacher("train", "--out", tmp_path / "nothing", "--resume").error


def test_progress_goes_to_stderr_and_results_to_stdout(clipteacher, drawn, tmp_path):
    result = clipteacher.good("precompute", *folder_options(drawn), *TINY, "--cache", tmp_path / "c", "--json")
    assert result.json["done"] == 6
    for word in ("meaningless", "cpu in fp32", "KiB", "images/s"):
        assert word in result.err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(clipteacher, command):
    page = clipteacher.good(command, "--help").out
    assert "Usage" in page
    assert not re.search(r"<(list|str|int|float|path|bool)\b", page)  # types of Python


def test_help_does_not_import_torch():
    check = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))"
    assert in_a_process("train", "--help", prelude=check).stdout.strip().endswith("False")


def test_second_precompute_encodes_nothing(clipteacher, cached, drawn):
    data = (*folder_options(drawn), "--shard", 4)
    result = clipteacher.good("precompute", *data, *TINY, "--cache", cached, "--json")
    assert (result.json["done"], result.json["encoded"]) == (6, 0)


def test_truncated_image_is_recorded_and_skipped(clipteacher, drawn, tmp_path):
    truncated = drawn / "images/train/002.png"
    truncated.write_bytes(truncated.read_bytes()[:300])
    arguments = ("precompute", *folder_options(drawn), *TINY, "--cache", tmp_path / "c")
    result = clipteacher(*arguments)
    assert result.status == 1
    assert "1 of 6 images failed" in result.error
    assert "failed images/train/002.png" in result.err
    about = clipteacher.good("info", tmp_path / "c", "--json").json
    assert (about["done"], about["failed"]) == (5, 1)
    assert list(about["failures"]) == ["images/train/002.png"]
    clipteacher.good(*arguments, "--max-failures", 0.2)
    run = ("--iterations", 2, "--batch-size", 5, "--size", 64, "--out", tmp_path / "run")
    clipteacher.good("train", "--cache", tmp_path / "c", *run, *STUDENT)


# -- errors: one line that names the problem and the fix; nothing is written -----------------------------------


@pytest.fixture
def mistake(clipteacher, drawn, tmp_path):
    """Run an invalid `precompute`, check that it wrote nothing, and return its error."""

    def run(*arguments, status, root=drawn, unseen="disc"):
        cache = tmp_path / "caches" / "folder.zarr"
        given = ("--unseen", unseen) if unseen is not None else ()
        result = clipteacher(
            "precompute", "--dataset", "folder", "--root", root, "--cache", cache, *TINY, *given, *arguments
        )
        assert not cache.parent.exists()
        assert result.status == status
        return result.error

    return run


def test_missing_root_is_refused(mistake, tmp_path):
    assert "no such folder" in mistake(root=tmp_path / "nowhere", status=1)


def test_empty_split_is_refused(mistake, drawn):
    shutil.rmtree(drawn / "images/train")
    (drawn / "images/train").mkdir()
    assert str(drawn / "images/train") in mistake(status=1)


def test_label_maps_of_another_size_are_refused(mistake, drawn):
    for file in (drawn / "labels/train").iterdir():
        Image.open(file).crop((0, 0, 100, 100)).save(file)
    error = mistake(status=1)
    assert "labels/train/000.png" in error
    assert "100 x 100" in error
    assert "128 x 128" in error


def test_out_of_range_labels_are_reported_with_their_file(mistake, drawn):
    for file in (drawn / "labels/train").iterdir():
        Image.fromarray(np.full((128, 128), 77, np.uint8)).save(file)
    error = mistake(status=1)
    assert "labels/train/000.png" in error
    assert "77" in error


def test_unknown_unseen_class_gets_a_suggestion(mistake):
    assert "--unseen: no class named 'gras' in folder; did you mean 'grass'?" in mistake(unseen="gras", status=2)


def test_folder_dataset_requires_unseen(mistake):
    assert '--unseen "name,name"' in mistake(unseen=None, status=2)


def test_unknown_clip_gets_a_suggestion(mistake):
    assert "did you mean" in mistake("--clip", "ViT-B16-quickgelu", status=2)


def test_openai_weights_require_quickgelu(mistake):
    error = mistake("--clip", "ViT-B-16", "--clip-weights", "openai", status=2)
    assert "ViT-B-16-quickgelu" in error


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--clip-weights", "no-such-file.pt"),
        ("--image-size", "100"),
        ("--precision", "fp64"),
        ("--dense", "int4"),
        ("--kmeans", "sklearn"),
        ("--shard", "0"),
        ("--limit", "0"),
        ("--device", "tpu"),
        ("--dataset", "cityscapes"),
    ],
)
def test_invalid_precompute_options_are_usage_errors(mistake, option, value):
    error = mistake(option, value, status=2)
    assert value in error


def test_insufficient_disk_space_suggests_dense_none(mistake, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1000))
    error = mistake(status=1)
    assert "--dense none" in error
    assert "GiB" in error


def test_cache_with_another_fingerprint_is_refused(clipteacher, cached, drawn):
    before = {f: f.read_bytes() for f in cached.rglob("*") if f.is_file()}
    data = ("--dataset", "folder", "--root", drawn, "--cache", cached, "--shard", 4, *TINY)
    error = clipteacher("precompute", *data, "--unseen", "disc", "--image-size", 256).error
    assert "clip.image_size: 128 there, 256 here" in error
    assert (
        "masks.unseen: ['disc'] there, ['stripe'] here" in clipteacher("precompute", *data, "--unseen", "stripe").error
    )
    assert "3 missing (images/" in clipteacher("precompute", *data, "--unseen", "disc", "--limit", 3).error
    assert before == {f: f.read_bytes() for f in cached.rglob("*") if f.is_file()}


def test_training_on_an_unfinished_cache_is_refused(clipteacher, cached, tmp_path):
    (cached / "journal/c/1").unlink()
    result = clipteacher("train", "--cache", cached, "--out", tmp_path / "run", *STUDENT)
    assert "1 of 2 shards are not done" in result.error
    assert not (tmp_path / "run").exists()


def test_train_defaults_to_the_only_cache(clipteacher, cached, tmp_path, monkeypatch):
    folder = tmp_path / "several"
    folder.mkdir()
    monkeypatch.setenv("CLIPTEACHER_CACHE", str(folder))
    assert "run `precompute` first" in clipteacher("train", *STUDENT).error
    shutil.copytree(cached, folder / "a.zarr")
    run = ("--out", tmp_path / "run", "--iterations", 1, "--batch-size", 2, "--size", 64)
    clipteacher.good("train", *run, *STUDENT)
    shutil.copytree(cached, folder / "b.zarr")
    error = clipteacher("train", *run, *STUDENT).error
    assert "a.zarr" in error
    assert "b.zarr" in error


def test_training_on_other_images_is_refused(clipteacher, cached, drawn, tmp_path):
    (drawn / "images/train/000.png").rename(drawn / "images/train/other.png")
    assert "not the images" in clipteacher("train", "--cache", cached, "--out", tmp_path / "run", *STUDENT).error


def test_training_on_changed_images_or_labels_is_refused(clipteacher, cached, drawn, tmp_path):
    def error():
        return clipteacher("train", "--cache", cached, "--out", tmp_path / "run", "--size", 64, *STUDENT).error

    label = drawn / "labels/train/001.png"
    content = label.read_bytes()
    label.unlink()
    assert "images/train/001.png: the image or its label map changed" in error()
    label.write_bytes(content)
    shutil.copy(drawn / "images/train/003.png", drawn / "images/train/001.png")
    assert "images/train/001.png: the image or its label map changed" in error()


@pytest.mark.parametrize("change", [list.reverse, lambda names: names.append("moon")])
def test_training_with_other_class_names_is_refused(clipteacher, cached, drawn, tmp_path, change):
    names = (drawn / "classes.txt").read_text().split()
    change(names)
    (drawn / "classes.txt").write_text("\n".join(names))
    error = clipteacher("train", "--cache", cached, "--out", tmp_path / "run", *STUDENT).error
    assert "class names or their order" in error


def test_log_without_attention_is_valid_json(clipteacher, cached, tmp_path):
    run = ("--iterations", 1, "--batch-size", 2, "--size", 64, "--out", tmp_path / "run", "--glm", "max")
    result = clipteacher.good("train", "--cache", cached, *run, *STUDENT, "--json")
    assert "NaN" not in result.out + (tmp_path / "run/log.jsonl").read_text()
    assert "entropy" not in result.json


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_file_in_place_of_a_folder_is_refused(clipteacher, cached, drawn, tmp_path, option):
    (tmp_path / "file").write_text("")
    if option == "--out":
        run = ("--iterations", 1, "--batch-size", 2, "--size", 64)
        result = clipteacher("train", "--cache", cached, *run, "--out", tmp_path / "file", *STUDENT)
    else:
        data = folder_options(drawn)
        result = clipteacher("precompute", *data, *TINY, "--cache", tmp_path / "file/c.zarr")
    assert str(tmp_path / "file") in result.error


@pytest.mark.parametrize(
    "arguments",
    [
        ("--size", 100),
        ("--arch", "segnet"),
        ("--encoder", "resnet7"),
        ("--glm", "median"),
        ("--masks", "fine"),
        ("--loss-stride", 300),
    ],
)
def test_invalid_train_options_are_usage_errors(clipteacher, cached, tmp_path, arguments):
    result = clipteacher("train", "--cache", cached, "--out", tmp_path / "run", *STUDENT, *arguments)
    assert result.status == 2
    assert str(arguments[1]) in result.error
    assert not (tmp_path / "run").exists()


def test_nan_gamma_is_refused(clipteacher, drawn, tmp_path):
    result = clipteacher("evaluate", tmp_path, "--dataset", "folder", "--root", drawn, "--gamma", "nan")
    assert "--gamma nan" in result.error


def test_missing_checkpoint_is_refused(clipteacher, drawn, tmp_path):
    error = clipteacher("evaluate", tmp_path / "nothing", "--dataset", "folder", "--root", drawn).error
    assert "no such run" in error


def test_missing_dataset_error_says_where_to_download_it(clipteacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPTEACHER_DATA", raising=False)
    result = clipteacher("precompute", "--dataset", "coco")
    assert result.status == 1
    assert "Traceback" not in result.err
    for word in ("cocodataset.org", "stuffthingmaps_trainval2017", "train2017,val2017}/*.jpg", "--root"):
        assert word in result.err
