"""The teacher's outputs for a batch, CLS tokens and pseudo labels, from the cache or from a live CLIP."""

from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int, Int16, Shaped
from torch import Tensor

from data_cache.content import CachedArrays
from data_cache.datasets.decode import count_values
from data_cache.layout import reserved_label
from data_cache.system.async_copy import to_device
from trainer.data import Batch, TrainingData
from trainer.losses.pixel_terms import IGNORE
from trainer.losses.total import TeacherTargets

CPU = torch.device("cpu")


class TeacherSource(Protocol):
    """Provides the teacher's outputs during training: from the cache, or from a live CLIP."""

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels of views. Tokens that are not ignored have the reserved label."""


class CachedTeacher:
    """Reads CLS tokens and fused labels from memory.

    Only the training process calls it: forked decoding processes share its pages but never touch them.
    """

    def __init__(self, loaded: CachedArrays) -> None:
        self._loaded = loaded

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels as stage 1 stored them."""
        return self._loaded.cls[image, view], self._loaded.label[image, view]


class NamedTeacher:
    """A teacher whose pseudo labels may have names.

    Its labels 0 to U - 1 are the unseen classes, and its label U + j is label j of the teacher, if that has no name.

    Args:
        teacher: the source of the labels.
        names: the rank of each label's name among the U unseen classes, or a negative number.
        unseen: U.

    """

    def __init__(self, teacher: TeacherSource, names: Int16[np.ndarray, "image view label"], unseen: int) -> None:
        self._teacher, self._unseen = teacher, unseen
        anonymous = np.arange(unseen, unseen + names.shape[2], dtype=np.uint16)
        self._label = np.where(names < 0, anonymous, names.astype(np.uint16))

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens, and labels with names."""
        cls, label = self._teacher(image, view)
        reserved = label == reserved_label(label.dtype.name)
        table, index = self._label[image, view], np.where(reserved, 0, label).reshape(len(label), -1)
        found = np.take_along_axis(table, index.astype(np.int64), axis=1).reshape(label.shape)
        return cls, np.where(reserved, reserved_label("uint16"), found).astype(np.uint16)


def cached_teacher(data: TrainingData) -> TeacherSource:
    """The source of what the cache holds, with the names of pseudo labels in the transductive setting."""
    teacher = CachedTeacher(data.loaded)
    return teacher if data.names is None else NamedTeacher(teacher, data.names, len(data.split.unseen))


def teacher_targets(teacher: TeacherSource, batch: Batch, num_seen: int, device: torch.device = CPU) -> TeacherTargets:
    """The CLS tokens and pixel targets of a batch on a device, given the number of seen classes."""
    cls, pseudo_label = teacher(batch.image.numpy(), batch.view.numpy())
    pseudo_label = _signed(pseudo_label)
    present = present_labels(batch.label.numpy(), pseudo_label, num_seen)
    label, image, pseudo, tokens = (
        to_device(values, device) for values in (batch.label, batch.image, pseudo_label, cls.astype(np.float32))
    )
    return TeacherTargets(tokens, joint_target(label, pseudo, num_seen), image, present)


def joint_target(
    label: Int[Tensor, "batch height width"], pseudo_label: Int[Tensor, "batch y x"], num_seen: int
) -> Int[Tensor, "batch height width"]:
    """Eq. 6: a pixel's seen label if it has one, else K + the pseudo label of its nearest token, else -1."""
    height, width = label.shape[1:]
    rows = torch.arange(height, device=label.device) * pseudo_label.shape[1] // height
    columns = torch.arange(width, device=label.device) * pseudo_label.shape[2] // width
    nearest = pseudo_label[:, rows[:, None], columns]
    nearest = torch.where(nearest == IGNORE, IGNORE, nearest + num_seen)
    return torch.where(label == IGNORE, nearest, label)


def present_labels(
    label: Int[np.ndarray, "batch height width"], pseudo_label: Int[np.ndarray, "batch y x"], num_seen: int
) -> Bool[np.ndarray, "batch label"]:
    """Which labels occur in the `joint_target` of each image, without computing it."""
    present = np.zeros((len(label), num_seen + max(int(pseudo_label.max()) + 1, 0)), dtype=bool)
    for own, pixels in zip(present, label, strict=True):
        own[:num_seen] = count_values(pixels.astype(np.uint8))[:num_seen] > 0
    unlabelled = label == IGNORE
    for axis in (1, 2):
        nearest = np.arange(label.shape[axis]) * pseudo_label.shape[axis] // label.shape[axis]
        tokens, first = np.unique(nearest, return_index=True)
        unlabelled = np.logical_or.reduceat(unlabelled, first, axis=axis)
        pseudo_label = pseudo_label.take(tokens, axis=axis)
    image, *token = (unlabelled & (pseudo_label != IGNORE)).nonzero()
    present[image, num_seen + pseudo_label[image, *token]] = True
    return present


def _signed(labels: Shaped[np.ndarray, "batch y x"]) -> Int[np.ndarray, "batch y x"]:
    return np.where(labels == reserved_label(labels.dtype.name), IGNORE, labels.astype(np.int64))
