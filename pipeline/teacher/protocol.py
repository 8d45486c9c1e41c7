"""What a teacher is: all that the rest of the code uses of one."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Features:
    """A teacher's features of a batch, already rounded to float16: all later steps start from these numbers."""

    cls: Float16[np.ndarray, "batch channel"]
    dense: Float16[np.ndarray, "batch y x channel"]


@dataclass(frozen=True)
class DeviceFeatures:
    """Features on the teacher's device. A GPU may still be computing them: reading them waits."""

    cls: Float16[Tensor, "batch channel"]
    dense: Float16[Tensor, "batch y x channel"]

    def finite(self) -> Bool[Tensor, "batch"]:
        """Whether all numbers of an image are finite in float16."""
        # an exponent of all ones is infinity or nan; testing the bits is 14 times as fast as `isfinite`
        largest = [(part.view(torch.int16) & 0x7FFF).flatten(1).amax(dim=1) for part in (self.cls, self.dense)]
        return torch.maximum(*largest) < 0x7C00


@runtime_checkable
class Teacher(Protocol):
    """Embeds images, patches of images, and texts in one space. `docs/teachers.md` explains how to add one."""

    image_size: int
    """Side of the square input in pixels."""
    patch: int
    """Side of the square patch that a dense token stands for, in pixels; it divides `image_size`."""
    grid: tuple[int, int]
    """Rows and columns of dense tokens."""
    channels: int
    """Length of a feature, the same for CLS tokens, dense tokens and texts."""
    mean: tuple[float, ...]
    """Mean of the input by channel, of pixels from 0 to 1; `forward` subtracts it."""
    std: tuple[float, ...]
    """Standard deviation of the input by channel; `forward` divides by it."""
    weights_hash: str
    """SHA-256 of all weights."""
    origin: Mapping[str, str]
    """The options `clip` and `weights` that load the same weights from any working directory."""
    device: torch.device
    """Where `forward` runs."""
    threads: int
    """How many cores this process may use."""
    max_concurrent_batches: int
    """How many threads may hold a `compute_slot` at once."""

    @property
    def batch(self) -> int:
        """Images per call of `forward`: rounding may depend on it, so equal batches give equal features."""
        ...

    def compute_slot(self) -> AbstractContextManager[None]:
        """Entered by a thread before it calls `forward`."""
        ...

    def forward(
        self, images: UInt8[np.ndarray, "batch size size 3"] | UInt8[Tensor, "batch size size 3"]
    ) -> DeviceFeatures:
        """CLS tokens (un-normalized) and dense tokens of RGB images, on the device, without waiting for it.

        Features beyond float16 are infinite; the caller checks (`DeviceFeatures.finite`).
        """
        ...

    def encode(self, images: UInt8[np.ndarray, "batch size size 3"]) -> Features:
        """The same in memory."""
        ...

    def encode_text(self, classes: Sequence[str], templates: Sequence[str]) -> Float[np.ndarray, "class channel"]:
        """One L2-normalized feature per class, from all templates."""
        ...

    def unknown_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Names with a word that it never learned, so that their features say nothing."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes its features, from which `pipeline.teacher.rebuild` makes it again."""
        ...
