"""The whole path on photographs: a CLIP, its cache, a student with an ImageNet encoder, and what it knows of others.

The CLIP is trained on tags of crops of the training photographs (`tests/helpers/photograph_clip.py`), because no CLIP
that was trained on captions can be downloaded. docs/photographs.md has the figures.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from imagenet import NAME, save_encoder_weights
from photograph_clip import Retrieval, retrieval, train_clip

from clipteacher import EvaluateConfig, PrecomputeConfig, TrainConfig, evaluate, precompute, train
from data_cache.datasets import open_dataset
from data_cache.reader import Cache
from data_cache.sample import crop_image
from data_cache.source_dataset import recorded_root
from data_cache.splits import make_split
from data_cache.views import View
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.weights import CLIPSource
from trainer.checkpoint import load
from trainer.losses.glm import CLSBank, info_nce, pool
from trainer.metrics import ConfusionMatrix, Metrics, metrics
from trainer.students.network import StudentNetwork

pytestmark = pytest.mark.slow

SIZE, VIEWS, CPU = 192, 8, torch.device("cpu")
CLIP_UPDATES = 200
STUDENT = TrainConfig(
    arch="segformer",
    encoder=f"tu-{NAME}",
    size=SIZE,
    batch_size=8,
    iterations=150,
    lr=2e-4,
    max_grad_norm=1.0,
    loss_stride=4,
    device="cpu",
    workers=0,
)


def held_out_global(network: StudentNetwork, val_cache: Path, train_cache: Path) -> float:
    """L_global of photographs that the student has not seen, with the CLS tokens of all training views as the bank.

    Chance is the logarithm of the number of candidates, 6.2.
    """
    trained, held_out = (Cache(path).load("default") for path in (train_cache, val_cache))
    dataset = open_dataset("camvid", recorded_root(Cache(val_cache)), "val")
    images, views, channels = trained.cls.shape
    bank = CLSBank(1, images * views, channels)
    bank.push(torch.from_numpy(trained.cls).float().flatten(0, 1), torch.arange(images).repeat_interleave(views))
    network.eval()
    losses = []
    for i in range(len(dataset)):
        image, geometry = dataset.load(i)[0], zip(held_out.box[i], held_out.flip[i], strict=True)
        crops = np.stack([crop_image(image, View.stored(box, flip), SIZE) for box, flip in geometry])
        cls = torch.from_numpy(held_out.cls[i]).float()
        with torch.no_grad():
            pooled, _ = pool(cls, network(torch.from_numpy(crops).permute(0, 3, 1, 2)), "attention")
            losses.append(info_nce(pooled, cls, torch.full((views,), images + i), bank, STUDENT.tau).item())
    return float(np.mean(losses))


def position_baseline(data: Path) -> Metrics:
    """The metrics of a guess that looks at no image: the most frequent seen class of each pixel in training."""
    training, photographs = (open_dataset("camvid", data, split) for split in ("train", "val"))
    split = make_split("camvid", training.classes, None)
    labels = np.stack([training.label(i) for i in range(len(training))])
    frequency = np.stack([(labels == k).sum(axis=0) for k in range(len(split.classes))])
    frequency[split.unseen_index] = -1
    confusion = ConfusionMatrix(len(split.classes))
    for i in range(len(photographs)):
        confusion.update(photographs.label(i), frequency.argmax(axis=0))
    return metrics(confusion.counts, split.unseen_index)


class Found(NamedTuple):
    """What a CLIP and a student know of photographs that neither was trained on, and L_global before and after."""

    clip: Retrieval
    student: Metrics
    baseline: Metrics
    before: float
    after: float


@pytest.fixture(scope="module")
def found(real_data, tmp_path_factory) -> Found:
    folder, data = tmp_path_factory.mktemp("photographs"), real_data / "camvid"
    weights, train_cache, val_cache = (folder / name for name in ("clip.safetensors", "train.zarr", "val.zarr"))
    training, photographs = (open_dataset("camvid", data, split) for split in ("train", "val"))
    clip = train_clip(training, weights, SIZE, CLIP_UPDATES)
    known = retrieval(FrozenCLIP(CLIPSource(str(clip), str(weights)), "fp32", CPU), photographs)
    teacher = {"clip": str(clip), "clip_weights": str(weights), "precision": "fp32", "device": "cpu"}
    settings = PrecomputeConfig(dataset="camvid", root=data, views=VIEWS, dense="none", **teacher)
    for images, cache in ((training, train_cache), (photographs, val_cache)):
        precompute(replace(settings, split=images.split, cache=cache))
    encoder = str(save_encoder_weights(folder / "lite0.pth"))
    config = replace(STUDENT, cache=str(train_cache), encoder_weights=encoder)
    torch.manual_seed(config.seed)
    start = StudentNetwork(config.arch, config.encoder, encoder, Cache(train_cache).layout.channels)
    before = held_out_global(start, val_cache, train_cache)
    train(config, folder / "run")
    after = held_out_global(load(folder / "run", CPU).network, val_cache, train_cache)
    student = evaluate(EvaluateConfig(folder / "run", "camvid", root=data, gamma=(0.0,), device="cpu")).metrics
    result = Found(known, student, position_baseline(data), before, after)
    print(result)
    return result


def test_clip_recognizes_tags_in_photographs_it_has_not_seen(found):
    assert np.mean([*found.clip.found.values()]) > np.mean([*found.clip.chance.values()]) + 0.03


def test_seen_classes_are_far_above_a_guess_from_the_position(found):
    assert found.baseline.miou_seen > 0.2
    assert found.student.miou_seen > found.baseline.miou_seen + 0.2
    assert found.student.pixel_accuracy > found.baseline.pixel_accuracy + 0.15


def test_global_loss_falls_on_photographs_that_were_not_trained_on(found):
    assert found.after < 0.95 * found.before
