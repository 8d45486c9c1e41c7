"""The teacher's part of a batch: CLS tokens and pseudo labels, from the cache or from a live CLIP."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float16, Int, Shaped
from torch import Tensor

from data_cache.content import Loaded
from data_cache.layout import reserved_label
from trainer.data import Batch
from trainer.losses.plm import IGNORE
from trainer.losses.total import TeacherTargets

CPU = torch.device("cpu")


class TeacherSource(Protocol):
    """What stands in for CLIP during training: the cache, or a live teacher behind the same call."""

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels of views, the labels with the reserved value where a token is not ignored."""


class CachedTeacher:
    """Reads CLS tokens and fused labels of views from memory, in the training process alone.

    Decoding processes never use it: when forked, they share its pages and never touch them.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """What stage 1 stored."""
        return self._loaded.cls[image, view], self._loaded.label[image, view]


def teacher_targets(teacher: TeacherSource, batch: Batch, seen: int, device: torch.device = CPU) -> TeacherTargets:
    """A teacher's CLS tokens and the joint pixel targets of a batch, on a device; `seen` counts the seen classes."""
    cls, labels = teacher(batch.image.numpy(), batch.view.numpy())
    pseudo = torch.from_numpy(_signed(labels)).to(device)
    tokens = torch.from_numpy(cls.astype(np.float32)).to(device)
    label, image = (part.to(device, non_blocking=True) for part in (batch.seen, batch.image))
    return TeacherTargets(tokens, joint_target(label, pseudo, seen), image)


def joint_target(
    label: Int[Tensor, "batch height width"], pseudo: Int[Tensor, "batch y x"], seen: int
) -> Int[Tensor, "batch height width"]:
    """The seen label where a pixel has one, else K + the pseudo label of its (nearest) token, else -1."""
    height, width = label.shape[1:]
    rows = torch.arange(height, device=label.device) * pseudo.shape[1] // height
    columns = torch.arange(width, device=label.device) * pseudo.shape[2] // width
    nearest = pseudo[:, rows[:, None], columns]
    nearest = torch.where(nearest == IGNORE, IGNORE, nearest + seen)
    return torch.where(label == IGNORE, nearest, label)


def _signed(labels: Shaped[np.ndarray, "batch y x"]) -> Int[np.ndarray, "batch y x"]:
    return np.where(labels == reserved_label(labels.dtype.name), IGNORE, labels.astype(np.int64))
