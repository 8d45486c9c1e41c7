"""Labels of unseen classes are never used. In the inductive setting, their names are used only at inference.

In the transductive one, training uses the names, too. `quality` also reads labels of unseen classes, for the numbers
that it reports on unseen classes only.
"""

import numpy as np
import pytest
import torch
import zarr
from folders import make_cache, precompute_config
from PIL import Image
from safetensors.torch import load_file
from shapes import CLASSES, draw_shapes

from experiments.config import QualityConfig
from experiments.quality import quality
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.teacher.names import TINY
from trainer.config import TrainConfig
from trainer.data import load_training_data
from trainer.loop import train
from trainer.monitor import TIMINGS

UNSEEN = ("disc", "stripe")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two datasets of the same images: in the second, unseen pixels are void and unseen names are swapped."""
    visible, hidden = (tmp_path_factory.mktemp(name) for name in ("visible", "hidden"))
    for root in (visible, hidden):
        draw_shapes(root, {"train": 6})
    a, b = (CLASSES.index(name) for name in UNSEEN)
    changed = 0
    for file in hidden.glob("labels/*/*.png"):
        label = np.array(Image.open(file))
        changed += np.isin(label, (a, b)).sum()
        Image.fromarray(np.where(np.isin(label, (a, b)), 255, label).astype(np.uint8)).save(file)
    assert changed
    names = list(CLASSES)
    names[a], names[b] = names[b], names[a]
    (hidden / "classes.txt").write_text("\n".join(names) + "\n")
    return visible, hidden


@pytest.fixture(scope="module")
def caches(datasets):
    found = []
    for root in datasets:
        settings = precompute_config(root, root / "c.zarr", unseen=",".join(UNSEEN))
        execute(plan(settings)).check(0)
        found.append(settings.cache)
    return found


def test_unseen_classes_leave_no_trace_in_features_and_masks(caches):
    visible, hidden = (zarr.open_group(cache, mode="r") for cache in caches)
    for name in ("cls", "dense", "masks/default/label", "masks/default/count", "view/box", "view/flip"):
        assert (visible[name][:] == hidden[name][:]).all(), name
    assert (visible["masks/default/label"][:] != 255).any()


def trained(cache, out, **settings):
    """The log and the weights of a short training, with metrics of held-out images."""
    lines = []
    config = TrainConfig(
        cache=str(cache),
        encoder_weights="none",
        size=64,
        iterations=4,
        batch_size=3,
        device="cpu",
        workers=0,
        val_every=1,
        val_images=2,
        **settings,
    )
    train(config, out, on_update=lines.append)
    assert all("val_pAcc" in line and "val_mIoU_S" in line for line in lines)
    steps = [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]
    return steps, load_file(next(out.glob("step_*/model.safetensors")))


def test_unseen_classes_leave_no_trace_in_training(caches, tmp_path):
    steps, weights = zip(*(trained(cache, tmp_path / f"run{i}") for i, cache in enumerate(caches)), strict=True)
    assert steps[0] == steps[1]  # the metrics of held-out images, too
    text = [one.pop("text") for one in weights]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # only the names themselves differ, and with them what the checkpoint knows of unseen classes
    differs = (text[0] != text[1]).any(dim=1).tolist()
    assert [name for name, one in zip(CLASSES, differs, strict=True) if one] == list(UNSEEN)


def test_labels_of_unseen_classes_leave_no_trace_in_transductive_training(tmp_path):
    caches, rng = [], np.random.default_rng(0)
    classes = ("sky", "grass", "sand", "ladybug", "rose", "waffle")  # this CLIP has never read of discs
    for name in ("as_drawn", "permuted"):
        root = draw_shapes(tmp_path / name, {"train": 8}, classes)
        if name == "permuted":
            ids = [classes.index(one) for one in ("ladybug", "waffle")]
            for file in root.glob("labels/*/*.png"):
                label = np.array(Image.open(file))
                unseen = np.isin(label, ids)
                label[unseen] = rng.choice([*ids, 255], unseen.sum())
                Image.fromarray(label).save(file)
        given = {"unseen": "ladybug,waffle", "clip": TINY, "clip_weights": None, "views": 2}
        caches.append(make_cache(root, tmp_path / f"{name}.zarr", **given))
    steps, weights = zip(*(trained(cache, tmp_path / cache.stem, transductive=True) for cache in caches), strict=True)
    assert steps[0] == steps[1]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    data = load_training_data(TrainConfig(cache=str(caches[0]), transductive=True))
    assert (data.names >= 0).any()


def test_unseen_classes_leave_no_trace_in_the_quality_on_seen_classes(caches):
    visible, hidden = (quality(QualityConfig((cache,), pictures=1)) for cache in caches)
    (one,), (other,) = visible.caches, hidden.caches
    assert one.masks[0].seen == other.masks[0].seen
    assert one.seen_tokens == other.seen_tokens
    assert one.masks[0].unseen.regions > other.masks[0].unseen.regions == 0
    pictures = [np.asarray(cache.figure.to_image()) for cache in (one, other)]
    np.testing.assert_array_equal(*pictures)
