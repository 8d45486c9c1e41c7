"""`report`: one self-contained page that shows all available results and fits a phone."""

import base64
import io
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from cards import change_card
from charts import read_back
from pages import Page
from PIL import Image
from refusals import refused
from small_run import small_run

from data_cache.class_list import class_lists
from data_cache.datasets import open_dataset
from data_cache.errors import InterruptError, UserError
from experiments.history import read_run
from experiments.report import RunReport, read_result
from trainer.checkpoint import load
from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.metrics import Metrics
from trainer.predictor import Predictor
from viewer.class_colors import class_colors
from viewer.figure import Panel
from viewer.page import data_uri

EVIL = "<script>alert(1)</script>"
LONG = "antidisestablishmentarianism" * 4
CLASSES = (EVIL, 'a "wide" & <b>bold</b> meadow', LONG, "disc", "square", "stripe")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("report") / "<i>report & co", CLASSES)


@pytest.fixture
def report(clipteacher):
    """Run the command; return the page it wrote and the missing parts it printed."""

    def run(folder, *options):
        result = clipteacher.good("report", folder, *options, "--json")
        return Page(Path(result.json["out"]).read_text(encoding="utf-8")), result.json["missing"]

    return run


@pytest.fixture(scope="module")
def found(made):
    """The metrics of the run, measured without a report."""
    images = open_dataset("folder", made.root, "val")
    return evaluate(Predictor(load(made.run, torch.device("cpu"))), images, (0.0, 1.0, 1.5, 5.0))


def copy_run(made, tmp_path, checkpoint=True):
    run = tmp_path / "run"
    shutil.copytree(made.run, run, ignore=None if checkpoint else shutil.ignore_patterns("step_*"))
    return run


# -- HTML ----------------------------------------------------------------------------------------------------------


def test_report_is_well_formed_and_self_contained(report, made):
    page, missing = report(made.run)
    assert not missing
    assert not page.all("script")
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert attributes.get(name, "data:").startswith("data:"), tag
        assert not [name for name in attributes if name.startswith("on")]
    style = page.text.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "//" not in re.sub(r"data:[^\"]*", "", page.text).replace("</", "")


def test_report_has_ordered_headings_and_alt_texts(report, made):
    page, _ = report(made.run)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert page.all("html") == [{"lang": "en"}]
    assert "run: a clipteacher run" in page.words
    alts = [picture["alt"] for picture in page.all("img")]
    assert len(alts) == 3 * 3 + 6 * 3
    assert len(set(alts)) == len(alts)
    assert "prediction of images/val/001.png" in alts
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in page.all("svg"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes} <= set(ids)
    for table in re.findall(r"<table.*?</table>", page.text, re.DOTALL):
        assert "<th" in table


def test_names_are_escaped(report, made, tmp_path):
    page, _ = report(made.run, "--out", tmp_path / "x.html")
    for name in CLASSES:
        assert name in page.words.replace("  ", " ")
    assert not page.all("i")
    assert "<i>report & co" in page.words


def test_page_has_styles_for_dark_mode_phones_and_print(report, made):
    page, _ = report(made.run)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "@media (prefers-color-scheme: dark)" in page.text
    assert "@media print" in page.text


# -- content -------------------------------------------------------------------------------------------------------


def test_metrics_match_evaluate_at_every_gamma(report, made, found):
    page, _ = report(made.run)
    for gamma in (0, 1.5):
        figures = [f"{100 * value:.1f}" for value in found.at(gamma).all.values()]
        assert page.row(f"gamma {gamma:g}")[1:] == figures
    for gamma in (1, 5):
        assert page.row(f"{gamma}")[1:] == [f"{100 * value:.1f}" for value in found.at(gamma).all.values()]
    assert "all 3 images of folder, split val" in page.words
    result = {row[0]: row[1] for row in page.rows if row[0] in CLASSES}
    iou = found.at(1.5).iou
    assert result == {name: f"{100 * v:.1f}" for name, v in zip(CLASSES, iou, strict=True) if not np.isnan(v)}


def test_class_bars_match_iou_and_unseen_classes_are_separate(report, made, found):
    page, _ = report(made.run)
    widths = [float(re.search(r"width: ([\d.]+)%", a["style"])[1]) for a in page.all("span") if "bar" in a["class"]]
    known = found.at(1.5).iou[~np.isnan(found.at(1.5).iou)]
    np.testing.assert_allclose(sorted(widths), np.sort(100 * known), atol=0.06)
    assert sum("bar unseen" in a["class"] for a in page.all("span")) == 1
    assert "Unseen classes (1)" in page.words
    assert "Seen classes (5)" in page.words


def test_all_settings_are_listed_with_changed_ones_first(report, made):
    page, _ = report(made.run)
    config, default = vars(read_run(made.run).config), vars(TrainConfig())
    changed = [row[0] for row in page.rows if len(row) == 3 and row[0] in config and row[2] == str(default[row[0]])]
    expected = {"encoder_weights", "iterations", "batch_size", "loss_stride", "device", "workers", "log_every"}
    assert expected <= set(changed)
    assert {row[0] for row in page.rows} >= config.keys()
    assert "5 with labels in training, 1 without: disc" in page.words


def test_pictures_match_the_students_predictions(report, made):
    page, _ = report(made.run, "--pictures", 1)
    by_alt = {picture["alt"]: picture["src"] for picture in page.all("img")}
    assert len(by_alt) == 6
    found = Predictor(load(made.run, torch.device("cpu")))(open_dataset("folder", made.root, "val").image(0)).at(1.5)
    source = by_alt["prediction of images/val/000.png"]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))
    side = np.arange(drawn.shape[0]) * 128 // drawn.shape[0]
    expected = class_colors(CLASSES)[found[side][:, side]]
    assert (drawn == expected).all(axis=2).mean() > 0.95


def test_label_maps_are_png_and_images_are_jpeg():
    rng = np.random.default_rng(0)
    labels = class_colors([str(i) for i in range(171)])[rng.integers(0, 171, (60, 90))]
    kind, content = data_uri(Panel("labels", labels)).split(";base64,")
    assert kind == "data:image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), labels)
    image = Panel("image", rng.integers(0, 256, (60, 90, 3), np.uint8), continuous=True)
    assert data_uri(image).startswith("data:image/jpeg")


def test_zero_pictures_omits_all_figures(report, made):
    page, missing = report(made.run, "--pictures", 0, "--limit", 1)
    assert not page.all("img")
    assert not missing
    assert "1 image from the start of folder, split val" in page.words


def test_each_logged_term_has_a_curve_and_unused_terms_are_listed(report, made, tmp_path):
    run = copy_run(made, tmp_path, checkpoint=False)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (run / "log.jsonl").write_text("".join(json.dumps(line | {"dice": 0}) + "\n" for line in lines))
    page, _ = report(run)
    titles = [chart["aria-label"].split(":")[0] for chart in page.all("svg")]
    assert len(titles) == len(set(titles)) == 7
    for word in ("Total", "Global", "Cross-entropy", "Focal", "Generate", "Entropy", "Learning rate"):
        assert any(title.startswith(word) for title in titles)
    assert "Not used in this run: Dice loss." in page.words


def test_learning_rate_axis_starts_at_zero(report, made, tmp_path):
    run = copy_run(made, tmp_path, checkpoint=False)
    lines = [{"step": step, "lr": 0.01 * (1 - step / 401), "total": 1.0} for step in range(1, 401)]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page, _ = report(run)
    (chart,) = re.findall(r'<svg[^>]*aria-label="Learning rate[^"]*".*?</svg>', page.text)
    points, texts = read_back(chart)
    np.testing.assert_allclose([value for _, value in points[0]][::199], [0.01 * (1 - 1.5 / 401), 0.00004], atol=1e-4)
    assert not any("logarithmic" in text for text in texts)
    assert "Lines are means over neighboring lines of the log" in page.words


# -- missing parts -------------------------------------------------------------------------------------------------


def test_run_in_progress_shows_only_curves_and_the_reason(report, made, tmp_path):
    run = copy_run(made, tmp_path, checkpoint=False)
    log = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join(log[:2]) + '\n{"step": 3, "lr": 0.0')
    page, missing = report(run)
    assert page.all("svg")
    assert not page.all("img")
    assert missing == [
        "1 line of the log: torn or damaged",
        "metrics and pictures: no checkpoint yet; the first will be saved at update 3",
    ]
    for line in missing:
        assert line in page.words
    assert "at update 2 of 3: not finished" in page.words
    assert "disc" in page.words


def test_run_without_a_log_shows_its_settings(report, made, tmp_path):
    run = copy_run(made, tmp_path, checkpoint=False)
    (run / "log.jsonl").unlink()
    page, missing = report(run)
    assert not page.all("svg")
    assert missing[0] == "curves: the log is empty so far"
    assert page.row("iterations", "3", "20000")


def test_missing_images_and_cache_are_reported_and_the_rest_is_shown(report, clipteacher, made, tmp_path):
    run = copy_run(made, tmp_path)
    change_card(run, lambda card: card["recorded"].update(root=str(tmp_path / "no")))
    change_card(run, lambda card: card["config"].update(cache=str(tmp_path / "no.zarr")))
    page, missing = report(run)
    assert [line.split(":")[0] for line in missing] == ["metrics and predictions", "attention"]
    assert page.all("svg")
    assert not page.all("img")
    # a missing path is an error if an option names it
    for option, path in (("--root", tmp_path / "no"), ("--cache", tmp_path / "no.zarr")):
        assert str(path) in clipteacher("report", run, option, path).error
    page, missing = report(run, "--root", made.root, "--cache", made.cache)
    assert len(page.all("img")) == 3 * 3 + 6 * 3
    assert not missing


def test_damaged_checkpoint_is_reported_as_missing(report, made, tmp_path):
    run = copy_run(made, tmp_path)
    next(run.glob("step_*/model.safetensors")).write_bytes(b"rubbish")
    page, missing = report(run)
    assert "damaged or foreign checkpoint" in missing[0]
    assert page.all("svg")


def test_damaged_config_and_log_leave_other_parts_intact(report, made, tmp_path):
    run = copy_run(made, tmp_path)
    page, _ = report(run, "--pictures", 0)
    (run / "config.json").write_bytes(b"")
    (run / "log.jsonl").write_bytes(b"\xff\xfe\n" + (run / "log.jsonl").read_bytes())
    again, missing = report(run, "--pictures", 0)
    assert ["using the settings of step_00000003" in missing[0], missing[1]] == [
        True,
        "1 line of the log: torn or damaged",
    ]
    assert len(again.all("svg")) == len(page.all("svg"))
    assert again.row("iterations", "3", "20000")


def test_ctrl_c_is_not_recorded_as_a_missing_part(made):
    report = RunReport(read_run(made.run))
    with pytest.raises(InterruptError), report.trying("all"):
        raise InterruptError("interrupted")
    with pytest.raises(UserError), report.trying("all", "an option"):
        raise UserError("not there")
    with report.trying("all"):
        raise UserError("not there", "second line")
    assert report.missing == ["all: not there"]


# -- saved results -------------------------------------------------------------------------------------------------


def test_saved_result_is_shown_without_evaluating(report, clipteacher, made, tmp_path, found):
    data = ("--dataset", "folder", "--root", made.root, "--limit", 1, "--gamma", "1.5,0,5")
    file = tmp_path / "result.json"
    file.write_text(clipteacher.good("evaluate", made.run, *data, "--json").out)
    page, missing = report(made.run, "--result", file)
    result = json.loads(file.read_text())
    assert page.row("gamma 1.5")[1:] == [f"{100 * result[name]:.1f}" for name in Metrics.ALL_COLUMNS]
    assert page.row("gamma 1.5")[1:] != [f"{100 * value:.1f}" for value in found.at(1.5).all.values()]
    assert f"read from {file}" in page.words
    assert any("Metrics by gamma" in chart["aria-label"] for chart in page.all("svg"))
    assert "Unseen classes (1)" in page.words
    assert not missing


def reproduced_row(paper: dict, departures: list[str], **metrics: object) -> str:
    """The content of a file that `reproduce` writes."""
    figures = {"mIoU": 0.45, "pAcc": 0.5, "mIoU_S": 0.4, "mIoU_U": None, "hIoU": 0.3, "gamma": 1.5}
    figures |= {"per_class": {"disc": 0.25}, "unseen": ["disc"], **metrics}
    return json.dumps({"metrics": figures, "paper": paper, "departures": departures})


def test_reproduced_rows_are_shown_with_the_papers(report, made, tmp_path):
    run = copy_run(made, tmp_path)
    (run / "voc.json").write_text(reproduced_row({"pAcc": 0.933, "hIoU": 0.865}, ["lr=1 instead of 2"]))
    (run / "ade150.json").write_text(reproduced_row({}, ["lr=1 instead of 2", "3 images"], mIoU=0.2))
    page, _ = report(run, "--limit", 1)
    assert page.row("reproduce on voc, gamma 1.5")[1:] == ["45.0", "50.0", "40.0", "-", "30.0"]
    assert page.row("the paper on voc")[1:] == ["-", "93.3", "-", "-", "86.5"]
    assert page.row("reproduce on ade150, gamma 1.5")[1] == "20.0"
    assert not any("the paper on ade150" in row for row in page.rows)
    assert "settings: lr=1 instead of 2; 3 images." in page.words
    page, _ = report(run, "--result", run / "voc.json")
    assert page.row("disc")[1] == "25.0"
    assert "Too few gammas" in page.words


def test_unseen_classes_of_a_result_are_those_that_it_states(tmp_path):
    classes = class_lists()["voc"].classes
    result = reproduced_row({}, [], per_class=dict.fromkeys(classes, 0.5), unseen=["cow"])
    (tmp_path / "voc20.json").write_text(result)
    assert read_result(tmp_path / "voc20.json").unseen == {"cow"}
    assert len(class_lists()["voc"].unseen) > 1


def test_many_classes_are_split_into_ranked_tables(report, made, tmp_path):
    shares = {f"class {i}": (i * 37 % 100) / 100 for i in range(100)} | {"ghost": None, "spook": None}
    (tmp_path / "r.json").write_text(reproduced_row({}, [], per_class=shares))
    page, _ = report(made.run, "--result", tmp_path / "r.json")
    rows = [row for row in page.rows if row[0].startswith("class ")]
    expected = sorted((value for value in shares.values() if value is not None), reverse=True)
    assert [row[1] for row in rows] == [f"{100 * value:.1f}" for value in expected]
    assert page.text.count('class="bars"') == 4
    assert "Classes in no label map and no prediction: ghost, spook." in page.words


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"gamma": 1.5}',
        '{"metrics": 3}',
        '{"gamma": 1, "mIoU": 0, "pAcc": 93, "mIoU_S": 0, "mIoU_U": 0, "hIoU": 0, "per_class": {}, "unseen": []}',
    ],
)
def test_invalid_result_files_are_refused(made, tmp_path, content):
    (tmp_path / "r.json").write_text(content)
    refused(lambda: read_result(tmp_path / "r.json"), "--result", "not what `evaluate --json` prints")


# -- options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "x.pdf"), "must end in .html"),
        (("--limit", 0), "--limit 0"),
        (("--gamma", "nan"), "--gamma nan"),
        (("--split", "bogus/x"), "cannot be a split"),
        (("--result", "r.json", "--limit", 3), "leave one of them out"),
    ],
)
def test_invalid_options_are_usage_errors_and_write_nothing(clipteacher, made, tmp_path, options, words):
    run = copy_run(made, tmp_path)
    (run / "report.html").unlink(missing_ok=True)
    result = clipteacher("report", run, *options)
    assert result.status == 2
    assert words in result.error
    assert not (run / "report.html").exists()


# -- in a browser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_page_renders_without_clipping_or_errors(browser, report, made, width, dark):
    page, _ = report(made.run)
    seen = browser.measure(page.text, width, dark)
    assert seen.inner == width
    assert seen.scroll <= width
    assert seen.outside == []
    assert seen.cut == []
    assert seen.console == []
    assert (seen.images, seen.broken) == (27, 0)
    assert seen.background == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("width", [360, 390])
def test_phone_shows_prediction_next_to_ground_truth(browser, report, made, width):
    page, _ = report(made.run)
    places = browser.measure(page.text, width).places
    for image, truth, prediction in zip(*[iter(places)] * 3, strict=True):
        assert truth[1] == prediction[1] >= image[3]
        assert truth[2] < prediction[0]
        assert prediction[2] - prediction[0] > 0.42 * width


def test_desktop_shows_two_images_side_by_side_with_all_panels(browser, report, made):
    page, _ = report(made.run)
    places = browser.measure(page.text, 1280).places
    first, second = places[:3], places[3:6]
    assert len({top for _, top, _, _ in first + second}) == 1
    assert first[2][2] < second[0][0]
    assert second[2][2] > 1200
    assert second[2][2] - second[2][0] > 160


def test_browser_check_detects_a_broken_page(browser):
    wrong = (
        '<!DOCTYPE html><body><p style="width:900px">wide</p>'
        '<svg viewBox="0 0 10 10" width="30"><text x="5" y="9">long</text></svg>'
        '<img src="data:image/png;base64,AAAA"><script>console.error("bad")</script></body>'
    )
    seen = browser.measure(wrong, 360)
    assert seen.scroll > 360
    assert len(seen.outside) == 1
    assert seen.cut == ["long"]
    assert seen.broken == 1
    assert "bad" in seen.console[0]
