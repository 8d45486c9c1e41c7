"""The paper's three students learn from real images."""

import json

import numpy as np
import pytest

STEPS, IMAGES = 100, 64


@pytest.mark.slow
@pytest.mark.parametrize("student", ["segformer-b4", "swin-b", "segnext-b"])
def test_papers_students_learn_in_100_steps(clipteacher, real_data, tmp_path, student):
    clip = ("--clip", "tiny", "--device", "cpu")
    where = ("--dataset", "coco", "--root", real_data / "coco")
    clipteacher.good(
        "precompute", *where, *clip, "--dense", "none", "--limit", IMAGES, "--cache", tmp_path / "coco.zarr"
    )
    (tmp_path / "settings.json").write_text(json.dumps({"log_every": 1, "max_grad_norm": 1.0, "lr": 1e-4}))
    small = ("--size", 64, "--batch-size", 4, "--loss-stride", 4, "--encoder-weights", "none")
    run = ("--cache", tmp_path / "coco.zarr", "--out", tmp_path / "run", "--iterations", STEPS, "--device", "cpu")
    settings = ("--config", tmp_path / "settings.json", "--student", student)
    trained = clipteacher.good("train", *settings, *small, *run, "--json").json
    assert trained["step"] == STEPS
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    # L_global is left out because it grows while the bank fills; both epochs see the same images
    pixel = np.array([line["pixel"] + line["generate"] for line in log])
    first, last = pixel[: IMAGES // 4].mean(), pixel[-IMAGES // 4 :].mean()
    result = clipteacher.good("evaluate", tmp_path / "run", *where, "--limit", 16, "--device", "cpu", "--json").json
    figures = f"pixel losses {first:.1f} -> {last:.1f}, pAcc {100 * result['pAcc']:.1f} %"
    print(f"{student}: {figures}, {trained['peak_bytes'] / 2**30:.2f} GiB, {trained['seconds']:.0f} s")
    assert last < 0.8 * first
    assert 0 < result["pAcc"] < 1
    assert trained["peak_bytes"] > 2**28
