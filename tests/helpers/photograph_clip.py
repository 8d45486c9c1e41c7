"""Trains a small CLIP on tagged crops of photographs, in place of one that was trained on captions from the web.

Tags name all classes in a crop, also those that are unseen in segmentation, as captions would.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from open_clip.transformer import PatchDropout  # not exported by open_clip itself
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from data_cache.datasets.base import VOID, Dataset
from data_cache.sample import crop_image
from data_cache.views import Cropping
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.weights import TINY_CONFIG, CLIPSource
from pipeline.tiny.retrieval import average_precision
from pipeline.tiny.train import update

CROPS = 200
"""Crops of a photograph, among which each update chooses."""
SCALE = (0.04, 1.0)
"""Area of a crop, as a share of the photograph."""
TAGGED = 0.01
"""A crop is tagged with the classes that cover at least this share of it."""
RATE, WARM_UP = 1e-3, 30
LOGIT_SCALE, LOGIT_BIAS = 10.0, -2.0
"""What turns cosines into logits of the sigmoid loss (SigLIP, arXiv 2303.15343)."""
ALL_PATCHES_START = 0.9
"""Half of the patches are dropped (FLIP, arXiv 2212.00794) until this share of the updates is done."""


class TaggedCrops:
    """Random crops of all photographs of a dataset, with the names of what is in them and nothing about where it is."""

    def __init__(self, dataset: Dataset, size: int, crops: int = CROPS) -> None:
        loaded = [dataset.load(i) for i in range(len(dataset))]
        self._images, self._labels = zip(*loaded, strict=True)
        self._size, self._classes = size, len(dataset.classes)
        cropping = Cropping(crops, scale=SCALE)
        self._views = [
            cropping.views(name, *image.shape[:2]) for name, image in zip(dataset.ids, self._images, strict=True)
        ]

    def batch(self, chosen):
        """Crops as RGB images, and a row of tags for each; `chosen` has pairs of indices: photograph and crop."""
        pixels, tags = [], []
        for image, number in chosen:
            view = self._views[image][number]
            pixels.append(crop_image(self._images[image], view, self._size))
            area = np.bincount(view.crop(self._labels[image]).ravel(), minlength=VOID + 1)
            tags.append(area[: self._classes] >= TAGGED * area.sum())
        return np.stack(pixels), np.stack(tags)


def train_clip(dataset: Dataset, weights: Path, size: int, updates: int, batch_size: int = 32, seed: int = 0) -> Path:
    """Train the bundled CLIP further on tagged crops, write its weights, and return the path of its config."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model, tokenizer = CLIPSource("tiny", image_size=size).load()
    with torch.no_grad():  # words that the bundled CLIP does not know are zeros
        words = model.token_embedding.weight
        words[~words.any(dim=1)] = 0.02 * torch.randn_like(words)[~words.any(dim=1)]
    config = json.loads(TINY_CONFIG.read_text())
    config["model_cfg"]["vision_cfg"]["image_size"] = size
    mean, std = (torch.tensor(config["preprocess_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))
    prompts = [
        tokenizer([template.format(name) for name in dataset.classes])
        for template in Prompts.default_for(dataset.name).templates
    ]
    crops = TaggedCrops(dataset, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    model.train()
    model.visual.patch_dropout = PatchDropout(0.5)
    for step in range(updates):
        chosen = zip(rng.integers(len(dataset), size=batch_size), rng.integers(CROPS, size=batch_size), strict=True)
        pixels, tags = crops.batch(chosen)
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        pixels = (pixels * torch.empty(batch_size, 1, 1, 1).uniform_(0.7, 1.3)).clamp(0, 1)
        if step >= ALL_PATCHES_START * updates:
            model.visual.patch_dropout = nn.Identity()
        names = model.encode_text(prompts[rng.integers(len(prompts))], normalize=True)
        image = model.encode_image((pixels - mean) / std, normalize=True)
        logits = LOGIT_SCALE * image @ names.T + LOGIT_BIAS
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(tags).float())
        rate = RATE * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / updates))
        update(model, optimizer, loss, rate)
    save_file({name: value.detach().half().contiguous() for name, value in model.state_dict().items()}, weights)
    weights.with_suffix(".json").write_text(json.dumps(config))
    return weights.with_suffix(".json")


class Retrieval(NamedTuple):
    """Average precision per class, and that of a random ranking: the share of crops that have the class."""

    found: dict[str, float]
    chance: dict[str, float]


def retrieval(clip: FrozenCLIP, dataset: Dataset, crops: int = 16) -> Retrieval:
    """Rank the crops of a dataset by the cosine similarity of CLS token and text feature."""
    text = clip.encode_text(dataset.classes, Prompts.default_for(dataset.name).templates)
    tagged = TaggedCrops(dataset, clip.image_size, crops)
    scores, tags = [], []
    for image in range(len(dataset)):
        pixels, present = tagged.batch([(image, number) for number in range(crops)])
        cls = clip.encode(pixels).cls.astype(np.float64)
        scores.append(cls / np.linalg.norm(cls, axis=1, keepdims=True) @ text.T)
        tags.append(present)
    scores, tags = np.concatenate(scores), np.concatenate(tags)
    found = {name: average_precision(scores[:, k], tags[:, k]) for k, name in enumerate(dataset.classes)}
    return Retrieval(found, dict(zip(dataset.classes, tags.mean(axis=0).tolist(), strict=True)))
