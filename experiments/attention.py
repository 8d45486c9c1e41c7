"""Where GLM's attention goes in a cache's images, and whether CLS tokens know what is in them (`attention`).

Reads the labels of unseen classes, as `quality` does, for analysis only.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import entr

from data_cache.cached_view import CachedView
from data_cache.callbacks import ProgressBar
from data_cache.errors import UserError
from data_cache.sample import crop_label
from data_cache.splits import Split
from data_cache.system.devices import resolve_device
from experiments.config import AttentionConfig
from experiments.figures import attention_of
from experiments.region_scores import class_counts
from experiments.show import training_cache
from experiments.stages import silent
from trainer.checkpoint import load
from trainer.losses.glm import attention_weights
from viewer.reader import CacheReader, open_finished_cache


@dataclass(frozen=True)
class Attention:
    """Measurements of view 0 of some images. The last column of `area` and `mass` is what has no label.

    Args:
        cache: the cache.
        run: the run whose student's features were used; None: the cached dense tokens.
        split: classes, seen and unseen.
        grid: cells per row and column.
        channels: width C of the joint space.
        area: share of the image that each class has.
        mass: share of the attention that each class gets (eq. 1).
        entropy: of the attention over the cells, in nats.
        norm: length of the CLS token.
        cosine: of the CLS token to the text features of each class.

    """

    cache: Path
    run: Path | None
    split: Split
    grid: tuple[int, int]
    channels: int
    area: Float[np.ndarray, "image column"]
    mass: Float[np.ndarray, "image column"]
    entropy: Float[np.ndarray, "image"]
    norm: Float[np.ndarray, "image"]
    cosine: Float[np.ndarray, "image class"]


def measure(config: AttentionConfig, progress_bar: ProgressBar = silent) -> Attention:
    """Measure the first images of a cache that have labels.

    Raises UserError if the cache is not finished or has no dense tokens and no run is given, its images are missing or
    have changed, none has a label, or the run's student was trained with another CLIP.
    """
    student = load(config.run, resolve_device(config.device)) if config.run else None
    if student:
        cache = training_cache(student, config.cache, config.root)
    else:
        cache = open_finished_cache(config.cache, config.root)
        if cache.cache.dense_stored() == "none":
            raise UserError(f"{config.cache}: has no dense tokens; pass --run, the run of a student, for its features")
    images, rows = cache.first_labelled(config.limit), []
    with progress_bar(f"measuring {config.cache.name}", len(images), "images") as advance:
        for index in images:
            view = cache[index]
            weights = attention_of(student, view) if student else attention_to_tokens(view)
            cls = view.cls.astype(np.float64)
            rows.append((*shares(view, weights, cache), entr(weights).sum(), np.linalg.norm(cls), cls))
            advance(1)
    area, mass, entropy, norm, cls = map(np.stack, zip(*rows, strict=True))
    cosine = (cls / norm[:, None]) @ cache.texts.features.T.astype(np.float64)
    return Attention(
        config.cache, config.run, cache.split, weights.shape, cls.shape[1], area, mass, entropy, norm, cosine
    )


def attention_to_tokens(view: CachedView) -> Float[np.ndarray, "y x"]:
    """Eq. 1 with CLIP's own dense tokens as features, whatever model the masks come from. The cache must have them."""
    dense = view.mask_set.cache.dense(view.index)[view.number]
    tokens = torch.from_numpy(dense.astype(np.float32)).permute(2, 0, 1)[None]
    weights = attention_weights(torch.from_numpy(view.cls.astype(np.float32))[None], tokens)
    return weights.view(tokens.shape[2:]).numpy()


def shares(
    view: CachedView, weights: Float[np.ndarray, "y x"], cache: CacheReader
) -> tuple[Float[np.ndarray, "column"], Float[np.ndarray, "column"]]:
    """The share of a view's area and of its attention that each class has, and last what has no label.

    The attention to a cell is divided among the classes in it by area.
    """
    cells = weights.shape[0]
    label = crop_label(view.sample.label, view.geometry, cells * math.ceil(cache.clip_size / cells))
    counts = class_counts(label, weights.shape, len(cache.split.classes)) * weights.size / label.size
    covered = np.concatenate([counts, 1 - counts.sum(axis=2, keepdims=True)], axis=2)
    return covered.mean(axis=(0, 1)), np.einsum("yx,yxc->c", weights, covered)
