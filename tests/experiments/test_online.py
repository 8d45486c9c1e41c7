"""Training from the cache equals training with CLIP in the loop, update by update."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from folders import precompute_config

from data_cache.datasets import open_dataset
from data_cache.reader import Cache
from experiments.stages import live_for
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.teacher import clip
from trainer import loop
from trainer.config import TrainConfig
from trainer.data import ViewDataset
from trainer.loop import train

STEPS, VIEWS = 20, 3
TERMS = ("total", "global", "ce", "focal", "dice", "generate")


def precomputed(folder, dataset, root, limit):
    clip = {"clip": "tiny", "clip_weights": None, "image_size": 128}
    cache = folder / f"{dataset}.zarr"
    settings = precompute_config(root, cache, dataset=dataset, **clip, limit=limit, shard=8, views=VIEWS)
    execute(plan(settings)).check(0)
    return TrainConfig(
        cache=str(settings.cache),
        encoder_weights="none",
        size=64,
        iterations=STEPS,
        batch_size=4,
        lr=1e-3,
        head_lr=1.0,
        loss_stride=2,
        device="cpu",
        workers=0,
    )


@pytest.fixture(scope="module", params=["scenes", pytest.param("coco", marks=pytest.mark.slow)])
def prepared(request, tmp_path_factory):
    """A dataset's name, its root, and a training config; the cache's views were encoded one by one."""
    root = None if request.param == "scenes" else request.getfixturevalue("real_data") / "coco"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(clip.BATCH, "cpu", 1)
        yield request.param, root, precomputed(tmp_path_factory.mktemp("online"), request.param, root, 16)


def steps(config, out, teacher=None):
    lines = []
    train(config, out, on_update=lines.append, teacher=teacher)
    return np.array([[line[name] for name in TERMS] for line in lines])


@pytest.fixture(scope="module")
def cached(prepared, tmp_path_factory):
    """The losses of every update of training from the cache."""
    return steps(prepared[2], tmp_path_factory.mktemp("cached") / "run")


class Compared:
    """A live teacher that compares its masks with the cache's."""

    def __init__(self, live, cache):
        self.live, self.loaded, self.equal, self.views = live, Cache(Path(cache)).load("default"), [], set()

    def __call__(self, image, view):
        cls, label = self.live(image, view)
        self.equal.append((label == self.loaded.label[image, view]).mean())
        self.views |= set(view.tolist())
        return cls, label


def test_online_losses_and_masks_match_the_cache(prepared, cached, tmp_path):
    _, _, config = prepared
    live = Compared(live_for(config), config.cache)
    assert live.live.batch == 1
    online = steps(config, tmp_path / "online", live)
    np.testing.assert_allclose(online, cached, rtol=1e-5, atol=1e-6)
    assert set(live.equal) == {1.0}
    assert live.views == set(range(VIEWS))


def test_losses_with_other_teacher_batches_agree_within_1_percent(prepared, cached, tmp_path):
    _, _, config = prepared
    online = steps(config, tmp_path / "online", replace(live_for(config), batch=4))
    np.testing.assert_allclose(online, cached, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("ignored", ["flip", "box"])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_ignoring_flip_or_crop_changes_the_losses(prepared, cached, tmp_path, monkeypatch, side, ignored):
    _, _, config = prepared
    config, live = replace(config, iterations=4), live_for(config)
    wrong = {"flip": np.zeros_like(live.flip), "box": live.box[:, :1].repeat(VIEWS, axis=1)}[ignored]
    if side == "teacher":
        teacher, term = replace(live, **{ignored: wrong}), "global"
    else:
        teacher, term = None, "ce"

        class WrongViews(ViewDataset):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                setattr(self, ignored, wrong)

        monkeypatch.setattr(loop, "ViewDataset", WrongViews)
    # later updates differ anyway because the schedule depends on the number of iterations
    found = steps(config, tmp_path / "wrong", teacher)[0]
    difference = np.abs(found - cached[0]) / np.abs(cached[0])
    assert difference[TERMS.index(term)] > 1e-3  # a hundred times the tolerance of agreement


def test_masks_cover_the_ignored_area_of_their_own_view(prepared):
    name, root, config = prepared
    cache = Cache(Path(config.cache))
    images = open_dataset(name, root, "train", 16)
    unseen = set(cache.mask_attributes("default")["unseen"])
    seen = [i for i, name in enumerate(images.classes) if name not in unseen]
    stored, boxes, flips = (cache.group[key][:] for key in ("masks/default/label", "view/box", "view/flip"))
    checked = 0
    for index in range(6):
        label = images.label(index)
        for view in range(VIEWS):
            top, left, bottom, right = boxes[index, view]
            rows = (top + (np.arange(128) + 0.5) * (bottom - top) / 128).astype(int)
            columns = (left + (np.arange(128) + 0.5) * (right - left) / 128).astype(int)
            shown = np.isin(label[rows][:, columns], seen)
            shown = shown[:, ::-1] if flips[index, view] else shown
            ignored = ~shown.reshape(8, 16, 8, 16).any(axis=(1, 3)) | (
                1 - shown.reshape(8, 16, 8, 16).mean(axis=(1, 3)) >= 0.5
            )
            agree = (stored[index, view] != 255) == ignored
            assert agree.mean() > 0.95  # rounding decides where a pixel's center falls on an edge
            checked += ignored.any() and not ignored.all()
    assert checked > 5


def test_online_and_strict_training_match_cached_training(clipteacher, prepared, tmp_path):
    _, _, config = prepared
    config = replace(config, iterations=3)
    config.save(tmp_path / "config.json")
    result = []
    for more in ((), ("--online",), ("--strict",)):
        out = ("--out", tmp_path / f"run{len(result)}")
        result.append(clipteacher.good("train", "--config", tmp_path / "config.json", *out, *more, "--json").json)
    for name in TERMS:
        assert result[0][name] == pytest.approx(result[1][name], rel=1e-5)
        assert result[0][name] == result[2][name]


def test_cache_with_another_view_geometry_is_refused(prepared, clipteacher):
    name, root, config = prepared
    group = zarr.open_group(config.cache, mode="r")
    assert group["view/box"].shape == (16, VIEWS, 4)
    where = ("--root", root) if root else ()
    same = (
        *("--dataset", name, *where, "--limit", 16, "--clip", "tiny", "--image-size", 128),
        *("--shard", 8, "--device", "cpu", "--precision", "fp32"),
    )
    error = clipteacher("precompute", *same, "--cache", config.cache, "--views", VIEWS, "--view-scale", "0.5,1").error
    assert "views.scale: [0.25, 1.0] there, [0.5, 1.0] here" in error
    result = clipteacher.good("precompute", *same, "--cache", config.cache, "--views", VIEWS, "--json").json
    assert result["encoded"] == 0
