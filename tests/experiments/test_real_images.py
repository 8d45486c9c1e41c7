"""All stages on real images, from precompute to evaluate."""

import json

import numpy as np
import pytest
from command_line import STUDENT, TINY

from data_cache.reader import Cache

EXPECTED = {"coco": (104, 171, 15), "camvid": (62, 11, 3)}


@pytest.mark.parametrize("dataset", ["coco", "camvid"])
@pytest.mark.slow
def test_real_images_are_cached_trained_on_and_evaluated(clipteacher, real_data, tmp_path, dataset):
    images, classes, unseen = EXPECTED[dataset]
    cache, run = tmp_path / "cache.zarr", tmp_path / "run"
    data = ("--dataset", dataset, "--root", real_data / dataset)
    summary = clipteacher.good("precompute", *data, *TINY, "--cache", cache, "--shard", 32, "--json").json
    assert (summary["images"], summary["done"], summary["failed"]) == (images, images, 0)

    student = ("--iterations", 50, "--batch-size", 4, "--size", 64, "--loss-stride", 4, *STUDENT)
    last = clipteacher.good("train", "--cache", cache, "--out", run, *student, "--json").json
    assert last["step"] == 50
    assert all(np.isfinite(value) for key, value in last.items() if key != "out")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["pixel"] < lines[0]["pixel"]

    result = clipteacher.good("evaluate", run, *data, "--limit", 12, "--json").json
    assert len(result["per_class"]) == classes
    assert len(Cache(cache).mask_attributes("default")["unseen"]) == unseen
    assert 0 <= result["pAcc"] <= 1
    both = result["mIoU_S"] + result["mIoU_U"]
    assert result["hIoU"] == pytest.approx(2 * result["mIoU_S"] * result["mIoU_U"] / both if both else 0)


def test_pseudo_labels_of_an_image_are_consecutive(clipteacher, real_data, tmp_path):
    data = ("--dataset", "coco", "--root", real_data / "coco", "--limit", 16)
    clipteacher.good("precompute", *data, *TINY, "--cache", tmp_path / "c", "--dense", "none")
    loaded = Cache(tmp_path / "c").load("default")
    labelled = loaded.label != 255
    assert 0.2 < labelled.mean() < 0.95
    for labels, keep, count in zip(loaded.label[:, 0], labelled[:, 0], loaded.count[:, 0], strict=True):
        np.testing.assert_array_equal(np.unique(labels[keep]), np.arange(count))


@pytest.mark.slow
@pytest.mark.parametrize("dataset", EXPECTED)
def test_papers_clip_encodes_real_images_at_512_pixels(clipteacher, real_data, tmp_path, dataset):
    data = ("--dataset", dataset, "--root", real_data / dataset, "--limit", 4)
    clip = ("--clip", "ViT-B-16-quickgelu", "--clip-weights", "random", "--device", "cpu")
    result = clipteacher.good("precompute", *data, *clip, "--cache", tmp_path / "c", "--json").json
    assert result["done"] == 4
    layout = Cache(tmp_path / "c").layout
    assert (layout.grid, layout.channels) == ((32, 32), 512)
