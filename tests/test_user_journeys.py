"""Transcripts of three users, from an empty folder to a result: what each must see at each step.

A student reproduces a table, an engineer has photographs and few labels, and a researcher works in a notebook.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import STUDENT
from PIL import Image
from shapes import CLASSES, draw_shapes
from small_run import small_run

import clipteacher as door
from clipteacher import EvaluateConfig, PrecomputeConfig, TrainConfig

pytestmark = pytest.mark.usefixtures("here")

TRAINING = ("--iterations", 3, "--batch-size", 2, "--size", 64, "--loss-stride", 4, *STUDENT)


def test_a_student_plans_a_row_of_the_paper_before_downloading_anything(clipteacher, here):
    assert "choose voc, context, coco" in clipteacher("reproduce", "vok", "--dry-run").error
    planned = clipteacher.good("reproduce", "voc", "--dry-run").out
    assert "10,582 to train on, 1,449 of voc to test on" in planned
    assert re.search(r"cache +[\d.]+ GiB in data_cache/voc.zarr", planned)
    header, paper = planned.splitlines()[planned.splitlines().index("") + 1 :][:2]
    assert header.split() == ["voc", "segformer-b4", "pAcc", "mIoU(S)", "mIoU(U)", "hIoU"]
    assert paper.split() == ["paper", "93.3", "89.6", "83.6", "86.5"]
    rows = clipteacher.good("ablate", "--help").out
    assert "--rows" in rows
    assert "runs/ablate" in rows
    assert not list(here.iterdir())


def test_a_student_evaluates_at_several_gammas_and_gets_a_report(clipteacher, tmp_path):
    made = small_run(tmp_path)
    data = ("--dataset", "folder", "--root", made.root)
    assert f"did you mean '{made.run}'" in clipteacher("evaluate", f"{made.run}s", *data).error
    lines = clipteacher.good("evaluate", made.run, *data, "--gamma", "0,1.5,3").out.splitlines()
    assert [re.findall(r"gamma ([\d.]+)", line) for line in lines] == [["0"], ["1.5"], ["3"]]
    assert all(name in lines[0] for name in ("pAcc", "mIoU(S)", "mIoU(U)", "hIoU"))
    written = clipteacher.good("report", made.run, "--limit", 2, "--pictures", 1).out.strip()
    page = Path(written).read_text()
    assert written == f"{made.run}/report.html"
    assert all(name in page for name in (*CLASSES, "mIoU(U)", "iterations"))


@pytest.mark.slow
def test_a_student_runs_the_demo_and_the_commands_that_it_proposes(clipteacher):
    shown = clipteacher.good("demo", "--limit", 16, "--iterations", 3)
    assert "update 3/3" in shown.err
    assert shown.out.splitlines()[0].split() == ["%", "pAcc", "mIoU(S)", "mIoU(U)", "hIoU", "gamma"]
    with Image.open("runs/demo/sheet.png") as sheet:
        assert sheet.width > 800
    proposed = [shlex.split(line) for line in shown.out.splitlines() if line.startswith("  python cli.py ")]
    assert [line[2] for line in proposed] == ["info", "train", "evaluate", "report", "precompute"]
    assert "16 of 16 done" in clipteacher.good(*proposed[0][2:]).out
    assert "runs/longer: trained 3 updates" in clipteacher.good(*proposed[1][2:], "--iterations", 3).out
    assert "hIoU" in clipteacher.good(*proposed[2][2:], "--limit", 4).out
    assert clipteacher.good(*proposed[3][2:], "--limit", 4).out.strip() == "runs/demo/clipteacher_0/report.html"


def test_an_engineer_goes_from_photographs_and_few_labels_to_a_shared_segmenter(clipteacher, here):
    draw_shapes(Path("photos"), {"train": 6, "val": 2})
    Path("photos/classes.txt").unlink()
    for file in sorted(Path("photos/labels/train").iterdir())[3:]:
        file.unlink()

    shown = clipteacher.good("init", "photos")
    assert "train: 6 images (6 .png), 3 with a label map" in shown.out
    assert "write a class name in place of each placeholder in photos/classes.txt" in shown.err
    data = ("--dataset", "folder", "--root", "photos", "--clip", "tiny", "--image-size", 64)
    assert "line 1 is still a placeholder" in clipteacher("precompute", *data, "--unseen", "disc").error
    Path("photos/classes.txt").write_text("\n".join(CLASSES))
    shown = clipteacher.good("init", "photos")
    assert all(name in shown.out for name in ("sky", "disc"))
    next_step = shlex.split(re.search(r"next: python cli.py (.+)", shown.err)[1])
    assert next_step == ["precompute", "--dataset", "folder", "--root", "photos", "--unseen", "NAME,NAME"]

    assert "did you mean 'disc'" in clipteacher("precompute", *data, "--unseen", "disk").error
    cached = clipteacher.good("precompute", *data, "--unseen", "disc")
    assert "3 of 6 images have a label map" in cached.err
    assert "6 of 6 images to do in 1 shard; about " in cached.err
    assert cached.out == "data_cache/folder.zarr: 6 of 6 images cached\n"
    assert "nothing to do" in clipteacher.good("precompute", *data, "--unseen", "disc").err
    assert "unseen   disc" in clipteacher.good("info", "data_cache/folder.zarr").out

    trained = clipteacher.good("train", *TRAINING)
    assert re.search(r"update 3/3: loss .+ images/s, ETA 0:00:00", trained.err)
    assert trained.out.startswith("runs/folder: trained 3 updates")

    predicted = clipteacher.good("predict", "runs/folder", "photos/images/val", "--classes", "disc,sky,grass").out
    assert predicted == "runs/folder/predictions: 2 of 2 images segmented\n"
    with Image.open("runs/folder/predictions/000.png.index.png") as index:
        assert index.size == (128, 128)
        assert np.asarray(index).max() <= 2

    url = (here / "published").as_uri()
    pushed = clipteacher.good("push", "runs/folder", url, "--license", "mit").out
    assert pushed.startswith(f"{url}: a run, ")
    card = Path("published/README.md").read_text()
    assert all(words in card for words in ("license: mit", "disc", "clipteacher pull", "No evaluation"))
    assert "published: a run" in clipteacher.good("pull", url).out
    again = clipteacher.good("predict", "runs/published", "photos/images/val", "--classes", "disc,sky,grass")
    assert again.out.startswith("runs/published/predictions")
    one, other = (Image.open(f"runs/{run}/predictions/000.png.index.png") for run in ("folder", "published"))
    np.testing.assert_array_equal(one, other)
    assert {path.name for path in here.iterdir()} == {"photos", "data_cache", "runs", "published"}


def test_a_researcher_goes_from_images_to_tables_and_figures_in_python(tmp_path):
    root = draw_shapes(tmp_path / "drawn", {"train": 4, "val": 2})
    with pytest.raises(door.UsageError, match="did you mean 'scenes'"):
        PrecomputeConfig(dataset="scene", clip="tiny")
    with pytest.raises(door.UsageError, match="run `precompute` first"):
        door.open_cache()
    settings = PrecomputeConfig(
        dataset="folder", root=root, unseen="disc", clip="tiny", image_size=64, views=2, device="cpu"
    )
    assert repr(door.precompute(settings)) == "data_cache/folder.zarr: 4 images, 2 views, masks default"

    cache = door.open_cache()
    assert cache.ids == [f"images/train/{i:03}.png" for i in range(4)]
    table = cache.to_dataframe()
    assert len(table) == 8
    assert {"id", "status", "ignored", "pseudo_labels"} <= set(table.columns)
    assert table.ignored.between(0, 1).all()
    assert cache[cache.ids[1]].sample.image.shape == (128, 128, 3)
    grid = np.asarray(cache.grid(range(4)).to_image().convert("L"))
    assert np.median(grid) > 127
    assert "<img" in cache[0]._repr_html_()

    training = TrainConfig(
        encoder_weights="none", size=64, iterations=2, batch_size=2, loss_stride=4, device="cpu", workers=0
    )
    student = door.train(training)
    assert (student.classes, student.unseen) == (CLASSES, ("disc",))
    report = door.evaluate(EvaluateConfig("runs/folder", dataset="folder", root=root, gamma=(0, 1.5)))
    assert str(report).count("mIoU(U)") == 2

    result = door.load("runs/folder").predict(cache[0].sample.image, classes=["disc", "sky"], gamma=1.5)
    assert result.label_map.shape == result.scores.shape == (128, 128)
    assert sum(area.pixels for area in result.areas.values()) == 128 * 128
    assert result.overlay().width >= 128
    assert all(text in result._repr_html_() for text in ("<img", *result.areas))
