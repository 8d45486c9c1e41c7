"""Warnings about inputs that are valid but probably mistakes."""

from pathlib import Path

import numpy as np
import pytest
from command_line import STUDENT, TINY, CommandLine
from folders import draw_folder
from PIL import Image
from shapes import draw_shape_image

CLASSES = ("background", "road")
SMALL = ("--arch", "fpn", "--encoder", "resnet18", "--size", 64, "--batch-size", 2, "--iterations", 1, *STUDENT)


def write(root: Path, labels: list[np.ndarray | None], classes: tuple[str, ...] = CLASSES) -> Path:
    generator = np.random.default_rng(0)
    return draw_folder(
        root, classes, {str(n): (draw_shape_image(generator)[0], label) for n, label in enumerate(labels)}
    )


def mask(*values: int, dtype: type = np.uint8) -> np.ndarray:
    return np.resize(np.repeat(np.array(values), 16), (128, 128)).astype(dtype)


def precompute(clipteacher: CommandLine, root: Path, *more: object, clip: tuple[object, ...] = TINY):
    cache = root.with_suffix(".zarr")
    return clipteacher(
        *("precompute", "--dataset", "folder", "--root", root, "--cache", cache, "--unseen", "", *clip, *more, "--json")
    )


@pytest.mark.parametrize("dtype", [np.uint8, bool], ids=["0 and 255", "1 bit"])
def test_classes_without_pixels_are_reported(clipteacher, tmp_path, dtype):
    result = precompute(clipteacher, write(tmp_path / "own", [mask(0, 255, dtype=dtype)] * 2))
    assert result.status == 0
    assert result.json["labelled"] == 2
    assert "2 of 2 images have a label map" in result.err
    (warning,) = result.json["warnings"]
    assert "1 of 2 classes have no pixel in the 2 label maps read: road; label value 255" in warning
    assert f"warning: {warning}" in result.err


def test_all_void_label_maps_and_single_color_images_are_reported(clipteacher, tmp_path):
    root = write(tmp_path / "own", [mask(0, 1), mask(255), None])
    Image.new("RGB", (128, 128), (3, 3, 3)).save(root / "images/2.png")
    result = precompute(clipteacher, root)
    assert "2 of 3 images have a label map" in result.err
    assert result.json["warnings"] == [
        "1 of 2 label maps have only void (255): images/1.png",
        "1 of 3 images have a single color: images/2.png",
    ]


def test_dataset_without_label_maps_is_reported_and_not_trained_on(clipteacher, tmp_path):
    result = precompute(clipteacher, write(tmp_path / "own", [None, None]))
    assert "0 of 2 images have a label map" in result.err
    assert "`train` needs labels of the seen classes" in result.err
    out = tmp_path / "run"
    assert (
        "no image has a label map" in clipteacher("train", "--cache", tmp_path / "own.zarr", "--out", out, *SMALL).error
    )


@pytest.mark.parametrize(("label", "unseen"), [(255, ""), (1, "road")])
def test_label_maps_without_a_seen_pixel_are_not_trained_on(clipteacher, tmp_path, label, unseen):
    root = write(tmp_path / "own", [mask(label)] * 2, ("sky", "road"))
    precompute(clipteacher, root, "--unseen", unseen)
    refused = clipteacher("train", "--cache", tmp_path / "own.zarr", "--out", tmp_path / "run", *SMALL)
    assert "no pixel of the label maps has a seen class" in refused.error
    assert not (tmp_path / "run").exists()


def test_a_few_seen_pixels_in_one_label_map_are_enough_to_train(clipteacher, tmp_path):
    few = mask(255).copy()
    few[:2, :2] = 0
    root = write(tmp_path / "own", [mask(255), few], ("sky", "road"))
    precompute(clipteacher, root)
    clipteacher.good("train", "--cache", tmp_path / "own.zarr", "--out", tmp_path / "run", *SMALL)


@pytest.mark.parametrize(
    ("names", "clip"),
    [
        pytest.param(("car", "Car"), TINY, id="capitals"),
        pytest.param(("flag", "Flag"), ("--clip", "tiny", "--image-size", 64), id="capitals of tiny"),
    ],
)
def test_class_names_that_clip_cannot_distinguish_are_reported(clipteacher, tmp_path, monkeypatch, names, clip):
    root = write(tmp_path / "own", [mask(0, 1)] * 2, names)
    events: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.feeder.Feeder._prepare", lambda *_: events.append("encoded") or 1 / 0)
        patch.setattr("commands.stages.echo_plan", lambda work: events.extend(work.warnings))
        with pytest.raises(ZeroDivisionError):
            precompute(clipteacher, root, clip=clip)
    assert f"same: '{names[0]}' and '{names[1]}'; rename" in events[0]
    assert events.index("encoded") == 1
    result = precompute(clipteacher, root, clip=clip)
    assert any("apart" in warning for warning in result.json["warnings"])
    run = tmp_path / "run"
    trained = clipteacher.good("train", "--cache", tmp_path / "own.zarr", "--out", run, *SMALL)
    assert f"same: '{names[0]}' and '{names[1]}'; rename" in trained.err
    data = ("--dataset", "folder", "--root", root, "--split", "train", "--device", "cpu")
    assert "apart" in clipteacher.good("evaluate", run, *data).err
    seen = clipteacher.good("predict", run, root / "images/0.png", "--out", tmp_path / "seen", "--device", "cpu")
    assert f"same: '{names[0]}' and '{names[1]}'; rename" in seen.err


@pytest.mark.parametrize(
    ("command", "printed", "work"),
    [
        ("predict", "student_commands", "zero_shot.ZeroShotSegmenter.predict"),
        ("export", "student_commands", "export._Exporter.write"),
        ("evaluate", "stages", "evaluation.evaluate_stage"),
    ],
)
def test_class_names_are_reported_before_the_work_begins(clipteacher, tmp_path, monkeypatch, command, printed, work):
    root = write(tmp_path / "own", [mask(0, 1)] * 2, ("car", "Car"))
    precompute(clipteacher, root)
    run = tmp_path / "run"
    clipteacher.good("train", "--cache", tmp_path / "own.zarr", "--out", run, *SMALL)
    data = ("--dataset", "folder", "--root", root, "--split", "train", "--device", "cpu")
    options = {"predict": (root / "images", "--out", tmp_path / "seen"), "export": (), "evaluate": data}[command]
    events: list[str] = []
    monkeypatch.setattr(f"commands.{printed}.echo_warnings", events.extend)
    monkeypatch.setattr(f"experiments.{work}", lambda *_, **__: events.append("work") or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clipteacher(command, run, *options)
    assert "same: 'car' and 'Car'; rename" in events[0]
    assert events.index("work") == 1


def test_evaluation_skips_a_broken_image(clipteacher, tmp_path):
    root = write(tmp_path / "own", [mask(0, 1)] * 3)
    precompute(clipteacher, root)
    run, data = tmp_path / "run", ("--dataset", "folder", "--root", root, "--split", "train", "--device", "cpu")
    clipteacher.good("train", "--cache", tmp_path / "own.zarr", "--out", run, *SMALL)
    whole = clipteacher.good("evaluate", run, *data, "--limit", 2, "--json").json
    broken = root / "images/2.png"
    broken.write_bytes(broken.read_bytes()[:500])
    result = clipteacher("evaluate", run, *data, "--json")
    assert result.status == 1
    assert "1 of 3 images could not be evaluated, and the metrics cover only the others" in result.error
    assert result.json.pop("failures").keys() == {"images/2.png"}
    assert {name: value for name, value in result.json.items() if name != "failures"} == whole
    (root / "labels/2.png").unlink()
    result = clipteacher.good("evaluate", run, *data, "--json")
    assert result.json == whole
    assert "1 of 3 images have no label map and are not evaluated" in result.err


def test_words_that_clip_never_learned_are_reported_before_encoding(clipteacher, tmp_path):
    root = write(tmp_path / "own", [mask(0, 1)] * 2, ("flag", "parking meter"))
    tiny = ("--clip", "tiny", "--image-size", 64)
    first, again = precompute(clipteacher, root, clip=tiny), precompute(clipteacher, root, clip=tiny)
    for result in (first, again):
        assert "never learned the words of 'parking meter'; use words that it knows, or another --clip" in result.err
        assert any("never learned" in warning for warning in result.json["warnings"])
    run = tmp_path / "run"
    clipteacher.good("train", "--cache", tmp_path / "own.zarr", "--out", run, *SMALL)
    command = ("predict", run, root / "images/0.png", "--out", tmp_path / "out", "--device", "cpu", "--classes")
    for _ in range(2):  # computed, then read from the stored text features
        assert "never learned the words of 'frisbee'" in clipteacher.good(*command, "ladybug,frisbee").err
    clipteacher.good(*command, "ladybug,flag")
