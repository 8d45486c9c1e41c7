"""The command `init`: what it lists about a folder, and what it writes."""

import json

import numpy as np
import pytest
from drawing import draw_image, draw_label
from PIL import Image
from shapes import CLASSES

from data_cache.datasets.folder import placeholder
from viewer.class_colors import class_colors


@pytest.fixture
def unnamed(drawn):
    """Drawn shapes with train and val, without classes.txt."""
    (drawn / "classes.txt").unlink()
    return drawn


def test_init_lists_images_labels_and_classes(clipteacher, drawn):
    (drawn / "labels/train/003.png").unlink()
    result = clipteacher.good("init", drawn)
    lines = result.out.splitlines()
    assert lines[0] == "train: 6 images (6 .png), 5 with a label map; 128 x 128 pixels"
    assert lines[1] == "val: 2 images (2 .png), 2 with a label map; 128 x 128 pixels"
    values, shares, maps, names = zip(*(line.split(maxsplit=3) for line in lines[3:]), strict=True)
    assert values == ("0", "1", "2", "3", "4", "5", "255")
    assert names == (*CLASSES, "(unlabeled, % of all pixels)")
    assert sum(float(share.rstrip("%")) for share in shares[:-1]) == pytest.approx(100, abs=0.5)
    assert maps[0] == maps[-1] == "7"
    assert "next: python cli.py precompute --dataset folder" in result.err
    listed = clipteacher.good("init", drawn, "--json").json
    assert listed["classes"] == list(CLASSES)
    assert [(split["images"], split["labelled"]) for split in listed["splits"]] == [(6, 5), (2, 2)]
    assert listed["splits"][0]["smallest"] == [128, 128]
    assert listed["wrote"] == {"labels": 0, "classes": 0, "placeholders": 0}


def test_init_writes_placeholders_that_precompute_refuses(clipteacher, unnamed, tmp_path):
    file = unnamed / "classes.txt"
    result = clipteacher.good("init", unnamed)
    assert file.read_text().splitlines() == [placeholder(value) for value in range(6)]
    assert f"{file}: placeholders written: 6" in result.out
    assert f"write a class name in place of each placeholder in {file}" in result.err
    data = ("--dataset", "folder", "--root", unnamed, "--unseen", "", "--clip", "tiny", "--cache", tmp_path / "c")
    assert f"{file}: line 1 is still a placeholder" in clipteacher("precompute", *data).error
    file.write_text("sky\n" + "".join(file.read_text().splitlines(keepends=True)[1:]))
    edited = file.read_text()
    assert "placeholders written" not in clipteacher.good("init", unnamed).out
    assert file.read_text() == edited
    clipteacher.good("init", unnamed, "--overwrite")
    assert file.read_text().startswith(placeholder(0))


def test_init_reports_the_problems_that_precompute_reports(clipteacher, drawn, tmp_path):
    Image.new("RGB", (128, 128)).save(drawn / "labels/train/000.png")
    draw_label(drawn / "labels/train/001.png", [0])
    (drawn / "images/train/002.png").write_bytes(b"damaged")
    draw_label(drawn / "labels/train/003.png", [6], (128, 128))
    (drawn / "images/train/e.heic").write_bytes(b"")
    result = clipteacher("init", drawn)
    assert "4 of 8 images would fail in precompute" in result.error
    data = ("--dataset", "folder", "--root", drawn, "--unseen", "", "--clip", "tiny", "--cache", tmp_path / "c")
    cached = clipteacher("precompute", *data, "--max-failures", 1, "--json")
    assert len(cached.json["failures"]) == 4
    for name, reason in cached.json["failures"].items():
        assert f"failed {name}: {reason}" in result.err
    assert "skipped because of their file endings: 1 .heic" in result.err


def test_init_of_folders_without_labels_says_what_is_missing(clipteacher, tmp_path):
    root = tmp_path / "own"
    for number in range(3):
        draw_image(root / f"images/{number}.jpg", (40 + number, 30))
    result = clipteacher.good("init", root)
    assert result.out.splitlines() == ["train: 3 images (3 .jpg), 0 with a label map; 40 x 30 to 42 x 30 pixels"]
    assert "`train` needs labels of the seen classes" in result.err
    assert "write one class name per line into" in result.err
    assert not (root / "classes.txt").exists()
    for number in range(3):
        draw_label(root / f"labels/{number}.png", [255, 0], (40 + number, 30))
    result = clipteacher.good("init", root)
    assert "a 1-bit mask; 255 is unlabeled" in result.err
    assert (root / "classes.txt").read_text() == f"{placeholder(0)}\n"


def test_init_converts_an_export_and_lists_the_result(clipteacher, tmp_path):
    root = tmp_path / "own"
    shape = {"label": "car", "points": [[0, 0], [4, 0], [4, 6], [0, 6]], "shape_type": "polygon"}
    for name, shapes in (("a", [shape]), ("b", [shape | {"shape_type": "point"}]), ("c", [])):
        draw_image(root / f"images/{name}.jpg")
        content = {"imagePath": f"{name}.jpg", "imageHeight": 6, "imageWidth": 8, "shapes": shapes}
        (root / f"images/{name}.json").write_text(json.dumps(content))
    result = clipteacher.good("init", root, "--from", root / "images")
    assert result.out.splitlines()[:3] == [
        f"{root / 'labels'}: label maps written: 1",
        f"{root / 'classes.txt'}: class names written: 1",
        "train: 3 images (3 .jpg), 1 with a label map; 8 x 6 pixels",
    ]
    assert "warning: b.jpg: a shape of 'car' is skipped: a point has no area" in result.err
    assert (root / "classes.txt").read_text() == "car\n"
    with Image.open(root / "labels/a.png") as picture:
        assert (np.array(picture)[:, :4] == 0).all()
        assert (np.array(picture)[:, 4:] == 255).all()
        assert picture.getpalette()[:3] == class_colors(["car"])[0].tolist()
    listed = clipteacher.good("init", root, "--from", root / "images", "--json").json
    assert listed["wrote"] == {"labels": 0, "classes": 0, "placeholders": 0}
    assert listed["skipped"] == {"b.jpg": "a shape of 'car' is skipped: a point has no area"}


def test_init_translates_color_coded_labels_next_to_the_images(clipteacher, tmp_path):
    root = tmp_path / "own"
    draw_image(root / "images/a.jpg")
    (root / "labels_rgb").mkdir()
    Image.new("RGB", (8, 6), (128, 64, 128)).save(root / "labels_rgb/a.png")
    (root / "colors.txt").write_text("sky:1,1,1\nroad:128,64,128\n")
    result = clipteacher.good("init", root, "--from", root / "labels_rgb", "--colors", root / "colors.txt")
    assert "1    100.0%        1  road" in result.out
    assert "--colors" in clipteacher("init", root, "--colors", root / "colors.txt").error
    assert "no such folder" in clipteacher("init", tmp_path / "none").error
