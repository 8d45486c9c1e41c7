"""Training data: a dataset with the content of its cache, and single views cropped exactly as the teacher saw them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Int16, UInt8
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from data_cache.content import CachedArrays, Texts
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError
from data_cache.layout import reserved_label
from data_cache.reader import Cache
from data_cache.sample import check_unchanged, crop_image, crop_label, read_label_unchanged, read_unchanged
from data_cache.source_dataset import open_source_dataset, recorded_root
from data_cache.splits import Split
from data_cache.views import View, check_resampling
from trainer.config import TrainConfig
from trainer.losses.pixel_terms import IGNORE
from trainer.naming import name_pseudo_labels
from trainer.photometric import distort
from trainer.sampler import Draw

PHOTOMETRIC, HELD_OUT = 1, 2
"""Separate the random streams of color changes and of held-out images from the sampling order, with the same seed."""


@dataclass(frozen=True)
class TrainingData:
    """A dataset and its cache: views, CLS tokens, fused masks and text features.

    `size` is the side of the student's input in pixels. `origin` is what a checkpoint records about the cache.
    `held_out` are the images that the student never sees, because it is validated on them. `names` are those of the
    pseudo labels (`trainer.naming`) if the setting is transductive.
    """

    dataset: Dataset
    split: Split
    loaded: CachedArrays
    texts: Texts
    size: int
    origin: Mapping[str, Any]
    held_out: Int[np.ndarray, "held"]
    names: Int16[np.ndarray, "image view label"] | None = None

    @property
    def text_classes(self) -> Int[np.ndarray, "text"]:
        """Ids of the classes whose names are known in training: the seen ones, then any that pseudo labels may have."""
        known = [self.split.seen_index] if self.names is None else [self.split.seen_index, self.split.unseen_index]
        return np.concatenate(known)


def load_training_data(config: TrainConfig) -> TrainingData:
    """Open cache and dataset, and check that they match.

    Raises:
        UserError, UsageError: the cache is missing or unfinished, or was made from other images.

    """
    if config.cache is None:
        raise UsageError("--cache: a value is missing")
    cache = Cache(Path(config.cache))
    check_resampling(cache.path, cache.fingerprint)
    masks = cache.mask_name(config.masks)
    loaded = cache.load(masks)
    root = Path(config.root) if config.root else recorded_root(cache)
    dataset, texts = open_source_dataset(cache, root), cache.texts()
    if not loaded.ok.any():
        raise UserError(f"{cache.path}: every image failed; see `info`, then rerun `precompute`")
    if not any(label for _, label in loaded.digest):
        raise UserError(
            f"{cache.path}: no image has a label map, so the seen classes cannot be learned; add label maps, then "
            "rerun `precompute` with another --cache"
        )
    split = Split(dataset.classes, tuple(cache.mask_attributes(masks)["unseen"]))
    _check_seen_pixels(cache.path, dataset, split, loaded)
    size = config.size or int(cache.fingerprint["clip"]["image_size"])
    origin = {
        "dataset": cache.fingerprint["dataset"],
        "clip": cache.fingerprint["clip"],
        "masks": cache.mask_recipe(masks),
        "prompts": {"name": texts.name, "templates": list(texts.templates)},
        "recorded": {
            "root": str(root.absolute()) if root else None,
            "clip": cache.attributes["recorded"].get("clip"),
        },
    }
    names = None
    if config.transductive:
        names = name_pseudo_labels(cache, loaded, split, texts.features)
        origin["pseudo_label_names"] = hashlib.sha256(names.tobytes()).hexdigest()
    return TrainingData(dataset, split, loaded, texts, size, origin, held_out_images(config, loaded), names)


def held_out_images(config: TrainConfig, loaded: CachedArrays) -> Int[np.ndarray, "held"]:
    """The images that are hidden from the student for validation, drawn by the seed among those with a label map.

    Raises UsageError if no labeled image would be left.
    """
    if not config.val_every:
        return np.array([], np.int64)
    labeled = [int(index) for index in np.flatnonzero(loaded.ok) if loaded.digest[index][1]]
    if len(labeled) < 2:
        raise UsageError(f"--val-every {config.val_every}: needs at least two images with a label map; omit it")
    count = max(1, min(config.val_images, len(labeled) // 10))
    return np.sort(np.random.default_rng((config.seed, HELD_OUT)).choice(labeled, count, replace=False))


def _check_seen_pixels(path: Path, dataset: Dataset, split: Split, loaded: CachedArrays) -> None:
    """Raise UserError if no pixel has a seen label. Label maps are read only if there is no seen token in the cache."""
    if (loaded.label == reserved_label(loaded.label.dtype.name)).any():
        return
    for index in np.flatnonzero(loaded.ok).tolist():
        label = read_label_unchanged(dataset, index, loaded.digest[index][1])
        if label is not None and not split.is_hidden(label).all():
            return
    raise UserError(
        f"{path}: no pixel of the label maps has a seen class, so there is nothing to learn from; `init` lists the "
        "label values of a folder; correct the label maps, then rerun `precompute` with --overwrite"
    )


class Batch(NamedTuple):
    """The student's input, the seen label of each pixel (its rank among seen classes, or -1), and image and view ids.

    A tuple, because a DataLoader does not pin the tensors of other classes.
    """

    images: UInt8[Tensor, "batch 3 size size"]
    label: Int16[Tensor, "batch size size"]
    image: Int[Tensor, "batch"]
    view: Int[Tensor, "batch"]


class ViewDataset(TorchDataset):
    """Cached views of images (by default, all that did not fail): image and label map, cropped as the teacher saw them.

    With a seed `photometric`, colors change differently at each draw. The geometry never changes.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        loaded: CachedArrays,
        size: int,
        photometric: int | None = None,
        images: Int[np.ndarray, "image"] | None = None,
    ) -> None:
        self.dataset, self.size, self.photometric = dataset, size, photometric
        self.split = split
        self.box, self.flip, self.digest = loaded.box, loaded.flip, loaded.digest
        self._verified: set[int] = set()
        self.images: Int[np.ndarray, "image"] = np.flatnonzero(loaded.ok) if images is None else images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> tuple[UInt8[Tensor, "3 size size"], Tensor, int, int] | UserError:
        """One view. The error of an unreadable image is returned, so that the training process can raise it."""
        index, view = int(self.images[draw.item]), draw.view
        try:
            image, label = self._read(index)
        except UserError as error:
            return error
        geometry = View.stored(self.box[index, view], self.flip[index, view])
        pixels = torch.from_numpy(crop_image(image, geometry, self.size)).permute(2, 0, 1)
        if self.photometric is not None:
            pixels = distort(pixels, np.random.default_rng((self.photometric, draw.position, PHOTOMETRIC)))
        if label is None:
            return pixels, torch.full((self.size, self.size), IGNORE, dtype=torch.int16), index, view
        target = self.split.seen_target(crop_label(label, geometry, self.size))
        return pixels, torch.from_numpy(target), index, view

    def _read(self, index: int) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"] | None]:
        """Read an image and its label map, and compare their hashes the first time this process reads them."""
        if index in self._verified:
            return self.dataset.load(index)
        sample = read_unchanged(self.dataset, index, self.digest[index])
        self._verified.add(index)
        return sample.image, sample.label

    def check_unchanged(self, index: int) -> None:
        """Raise UserError if an image or its label map differs from what was cached."""
        check_unchanged(self.dataset, index, self.digest[index])
        self._verified.add(index)
