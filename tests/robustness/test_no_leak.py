"""The setting is inductive: only the names of unseen classes are used, and only at inference.

`quality` also reads labels of unseen classes, for the numbers that it reports on unseen classes only.
"""

import numpy as np
import pytest
import torch
import zarr
from folders import precompute_config
from PIL import Image
from safetensors.torch import load_file
from shapes import CLASSES, draw_shapes

from experiments.config import QualityConfig
from experiments.quality import quality
from pipeline.plan import plan
from pipeline.precompute import execute
from trainer.config import TrainConfig
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


def test_unseen_classes_leave_no_trace_in_training(caches, tmp_path):
    steps, weights = [], []
    for cache in caches:
        lines, out = [], tmp_path / f"run{len(steps)}"
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
        )
        train(config, out, on_update=lines.append)
        assert all("val_pAcc" in line and "val_mIoU_S" in line for line in lines)
        steps.append([{name: value for name, value in line.items() if name not in TIMINGS} for line in lines])
        weights.append(load_file(next(out.glob("step_*/model.safetensors"))))
    assert steps[0] == steps[1]  # the metrics of held-out images, too
    text = [one.pop("text") for one in weights]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # only the names themselves differ, and with them what the checkpoint knows of unseen classes
    differs = (text[0] != text[1]).any(dim=1).tolist()
    assert [name for name, one in zip(CLASSES, differs, strict=True) if one] == list(UNSEEN)


def test_unseen_classes_leave_no_trace_in_the_quality_on_seen_classes(caches):
    visible, hidden = (quality(QualityConfig((cache,), pictures=1)) for cache in caches)
    (one,), (other,) = visible.caches, hidden.caches
    assert one.masks[0].seen == other.masks[0].seen
    assert one.seen_tokens == other.seen_tokens
    assert one.masks[0].unseen.regions > other.masks[0].unseen.regions == 0
    pictures = [np.asarray(cache.figure.to_image()) for cache in (one, other)]
    np.testing.assert_array_equal(*pictures)
