"""`attention`: shares of attention and area, entropy, scale, and CLS tokens against labels."""

import math
from dataclasses import replace

import numpy as np
import pytest
from folders import make_cache
from refusals import refused
from shapes import draw_shapes

from data_cache.sample import crop_label
from experiments import attention
from experiments.attention import measure
from experiments.attention_report import AttentionReport
from experiments.config import AttentionConfig
from experiments.ranking import auc, average_precision
from trainer.config import TrainConfig
from trainer.loop import train
from viewer.reader import open_cache

SMALL = {"size": 64, "batch_size": 2, "device": "cpu", "workers": 0, "encoder_weights": "none", "iterations": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cache of five images with label maps and one without, one without dense tokens, and a student."""
    folder = tmp_path_factory.mktemp("attention")
    root = draw_shapes(folder / "drawn", {"train": 6})
    (root / "labels/train/002.png").unlink()
    make_cache(root, folder / "c.zarr", unseen="disc,stripe")
    make_cache(root, folder / "bare.zarr", dense="none", unseen="disc,stripe")
    train(TrainConfig(cache=str(folder / "bare.zarr"), **SMALL), folder / "run")
    return folder


@pytest.fixture(scope="module")
def measured(made):
    return measure(AttentionConfig(made / "c.zarr"))


def test_attention_to_dense_tokens_equals_eq_1(made, measured):
    cache = open_cache(made / "c.zarr")
    images = [index for index in range(6) if cache[index].has_label]
    assert len(measured.area) == len(images) == 5
    for row, index in enumerate(images):
        view = cache[index]
        dense, cls = view.dense.astype(np.float64).reshape(-1, measured.channels), view.cls.astype(np.float64)
        scores = dense @ cls / math.sqrt(measured.channels)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        assert measured.entropy[row] == pytest.approx(-(weights * np.log(weights)).sum(), rel=1e-4)
        assert measured.norm[row] == pytest.approx(np.linalg.norm(cls))
        cells = measured.grid[0]
        pixels = crop_label(view.sample.label, view.geometry, cache.clip_size)
        side = len(pixels) // cells
        of_pixel = np.kron(weights.reshape(cells, cells), np.ones((side, side))) / side**2
        for column in range(len(cache.split.classes)):
            assert measured.mass[row, column] == pytest.approx(of_pixel[pixels == column].sum(), abs=1e-5)
            assert measured.area[row, column] == pytest.approx((pixels == column).mean())
    assert measured.area.sum(axis=1) == pytest.approx(1)
    assert measured.mass.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_even_attention_has_ratios_of_1_and_the_entropy_of_all_cells(made, monkeypatch):
    monkeypatch.setattr(attention, "attention_to_tokens", lambda view: np.full((3, 3), 1 / 9))
    report = AttentionReport(measure(AttentionConfig(made / "c.zarr"))).as_json()
    found = [*report["shares"].values(), *report["shares_by_size"].values(), *report["shares_by_class"].values()]
    assert {round(one["ratio"], 6) for one in found if one["area"]} == {1.0}
    assert report["entropy"] == pytest.approx(report["log_cells"]) == pytest.approx(math.log(9))


def test_shares_of_kinds_and_of_sizes_add_up(measured):
    report = AttentionReport(measured).as_json()
    for share in ("area", "attention"):
        assert sum(one[share] for one in report["shares"].values()) == pytest.approx(1, abs=1e-5)
        labeled = report["shares"]["seen"][share] + report["shares"]["unseen"][share]
        for parts in (report["shares_by_size"], report["shares_by_class"]):
            assert sum(one[share] for one in parts.values()) == pytest.approx(labeled)
    regions = sum(one["regions"] for one in report["shares_by_size"].values())
    assert regions == (measured.area[:, :-1] > 0).sum()
    assert report["scale"] == pytest.approx(measured.norm.mean() / math.sqrt(measured.channels))


def test_features_of_a_student_replace_dense_tokens(clipteacher, made):
    command = ("attention", made / "bare.zarr")
    assert "has no dense tokens; pass --run" in clipteacher(*command).error
    report = clipteacher.good(*command, "--run", made / "run", "--device", "cpu", "--json").json
    assert (report["run"], report["cells"], report["images"]) == (str(made / "run"), 16 * 16, 5)
    assert 0 < report["entropy"] <= report["log_cells"]
    assert clipteacher.good("attention", made / "c.zarr", "--limit", 2, "--json").json["images"] == 2


def test_report_is_a_table_and_a_line_per_measurement(clipteacher, made, measured):
    report, lines = AttentionReport(measured).as_json(), clipteacher.good("attention", made / "c.zarr").out.splitlines()
    assert any(line.startswith("| seen classes") for line in lines)
    assert f"|s| / sqrt(C) {report['scale']:.2f}" in lines
    entropy = next(line for line in lines if line.startswith("entropy"))
    assert f"{report['entropy']:.2f} of at most log({report['cells']}) = {report['log_cells']:.2f}" in entropy
    assert any(line.startswith("CLS tokens and seen classes: AUC") for line in lines)


def test_agreement_is_perfect_if_present_classes_have_the_highest_cosines(made):
    cache = open_cache(made / "c.zarr")
    found = measure(AttentionConfig(made / "c.zarr"))
    perfect = np.where(found.area[:, :-1] > 0, 0.9, 0.1)
    agreement = AttentionReport(replace(found, cosine=perfect)).agreement["seen"]
    assert agreement["auc"] == agreement["map"] == 1.0
    opposite = AttentionReport(replace(found, cosine=-perfect)).agreement["seen"]
    assert opposite["auc"] == 0.0
    assert opposite["map"] < 1
    cosine = [
        (view.cls.astype(float) / np.linalg.norm(view.cls.astype(float))) @ cache.texts.features.T
        for view in (cache[index] for index in range(6))
        if view.has_label
    ]
    assert found.cosine == pytest.approx(np.array(cosine), abs=1e-6)


def test_a_student_of_another_clip_is_refused(made, tmp_path):
    root = made / "drawn"
    make_cache(root, tmp_path / "other.zarr", image_size=96, unseen="disc,stripe")
    refused(lambda: measure(AttentionConfig(tmp_path / "other.zarr", made / "run")), "another CLIP")


@pytest.mark.parametrize("ties", [False, True])
def test_auc_and_average_precision_agree_with_counting_pairs(ties):
    rng = np.random.default_rng(0)
    for _ in range(30):
        scores = rng.integers(0, 4, 12).astype(float) if ties else rng.random(12)
        present = rng.random(12) < 0.4
        pairs = [(a > b) + (a == b) / 2 for a in scores[present] for b in scores[~present]]
        precisions = [present[scores >= a].mean() for a in scores[present]]
        assert auc(scores, present) == (pytest.approx(np.mean(pairs)) if pairs else None)
        assert average_precision(scores, present) == (pytest.approx(np.mean(precisions)) if precisions else None)
