"""The paper's claim at small scale: without global learning, unseen classes are not predicted.

The teacher is ideal: a CLS token is the sum of the text features of the image's classes, and masks are the ground
truth, so training takes a minute or two instead of the demo's many. (`pytest -m slow` runs both.)
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from folders import draw_folder

from data_cache.content import OK, Shard, Texts
from data_cache.datasets import open_dataset
from data_cache.layout import Layout
from data_cache.splits import make_split
from data_cache.views import RESIZE_FILTER
from data_cache.writer import CacheWriter
from experiments.demo_config import FULL, SWITCHES, WITHOUT_GLM
from trainer.checkpoint import load
from trainer.config import TrainConfig
from trainer.evaluate import evaluate
from trainer.loop import train
from trainer.predictor import Predictor

pytestmark = pytest.mark.slow

COLORS = {
    "snow": (230, 230, 240),
    "sea": (40, 80, 200),
    "wood": (120, 85, 40),
    "coal": (40, 40, 40),
    "lime": (160, 220, 60),
    "brick": (190, 50, 40),
    "moss": (50, 120, 50),
    "plum": (120, 40, 130),
    "sky": (120, 190, 240),
    "straw": (230, 200, 90),
    "pink": (240, 140, 190),
    "stone": (130, 130, 130),
}
CLASSES = tuple(COLORS)
UNSEEN = ",".join(CLASSES[5:])
SIDE, GRID, CHANNELS, IMAGES = 64, 8, 32, 300


def draw_stripes(root):
    """A `folder` dataset: each image has vertical stripes of three of the twelve classes, with noise."""
    rng, pictures = np.random.default_rng(0), {}
    for name in [f"train/{n:03}" for n in range(IMAGES)] + [f"val/{n:03}" for n in range(30)]:
        label = np.repeat(rng.choice(len(CLASSES), 3, replace=False), [24, 16, 24]).astype(np.uint8)
        label = np.tile(label, (SIDE, 1))
        image = np.array(list(COLORS.values()))[label] + rng.normal(0, 25, (SIDE, SIDE, 3)) + rng.normal(0, 10, 3)
        pictures[name] = (image.clip(0, 255).astype(np.uint8), label)
    return draw_folder(root, CLASSES, pictures)


def ideal_cache(root, path):
    """A cache as stage 1 writes it, from an ideal teacher."""
    images = open_dataset("folder", root, "train")
    split = make_split("folder", images.classes, UNSEEN)
    rng, n = np.random.default_rng(1), len(images)
    text = np.linalg.qr(rng.normal(size=(CHANNELS, CHANNELS)))[0][: len(CLASSES)].astype(np.float32)
    layout = Layout(n, 1, CHANNELS, (GRID, GRID), n, "none")
    attributes = {
        "fingerprint": {
            "clip": {"model": "ideal", "image_size": SIDE, "precision": "fp32", "weights_sha256": "none"},
            "dataset": {"name": "folder", "split": "train", "images": n},
            "views": {"count": 1, "resize": RESIZE_FILTER},
        },
        "recorded": {"root": str(root)},
    }
    recipe = {"windows": [3, 7], "threshold": 0.8, "updates": 10, "backend": "none"}
    masks = {"unseen": list(split.unseen), "dtype": "uint8"} | recipe
    texts = Texts("single", images.classes, ("a photo of a {}",), text)
    cache = CacheWriter.create(path, layout, attributes, images.ids, ("default", masks), texts)
    labels = np.stack([images.label(i) for i in range(n)])
    tokens = labels[:, SIDE // GRID // 2 :: SIDE // GRID, SIDE // GRID // 2 :: SIDE // GRID]
    present = np.array([[np.any(label == c) for c in range(len(CLASSES))] for label in labels])
    cls = 5 * present @ text / np.sqrt(3) + rng.normal(0, 0.1, (n, CHANNELS))
    hidden = np.isin(tokens, split.unseen_index)
    digests = [images.digest(i) for i in range(n)]
    data = Shard(
        size=np.full((n, 2), SIDE, np.int32),
        content_hash=[image for image, _ in digests],
        label_hash=[label for _, label in digests],
        status=[OK] * n,
        box=np.tile(np.array([0, 0, SIDE, SIDE], np.int32), (n, 1, 1)),
        flip=np.zeros((n, 1), bool),
        cls=cls[:, None].astype(np.float16),
        dense=None,
        label=np.where(hidden, tokens, 255).astype(np.uint8)[:, None],
        count=np.full((n, 1), len(CLASSES), np.int32),
    )
    cache.write_shard(0, data, "default")
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Metrics with and without GLM at gamma 0, where no bonus favors unseen classes."""
    folder = tmp_path_factory.mktemp("effect")
    root = draw_stripes(folder / "stripes")
    config = TrainConfig(
        cache=str(ideal_cache(root, folder / "stripes.zarr")),
        encoder_weights="none",
        photometric=False,
        size=SIDE,
        iterations=80,
        bank=4,
        lr=2e-3,
        head_lr=1.0,
        max_grad_norm=1.0,
        loss_stride=4,
        device="cpu",
        workers=0,
    )
    images = open_dataset("folder", root, "val")
    result = {}
    for name in (FULL, WITHOUT_GLM):
        train(replace(config, **SWITCHES[name]), folder / name)
        result[name] = evaluate(Predictor(load(folder / name, torch.device("cpu"))), images, [0.0]).at(0.0)
    return result


def test_unseen_classes_are_predicted_only_with_glm(found):
    lines = {name: str(metrics) for name, metrics in found.items()}
    assert found[FULL].miou_unseen > found[WITHOUT_GLM].miou_unseen + 0.15, lines
    # seen classes must not be sacrificed for it
    assert found[FULL].miou_seen > 0.8, lines
