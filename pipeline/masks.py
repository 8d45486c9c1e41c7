"""Pseudo masks of a view: which tokens are ignored, and the fused label of each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.datasets.base import VOID
from data_cache.errors import UsageError
from data_cache.schema import label_dtype, reserved_label
from data_cache.splits import Split
from pipeline.batched import BatchClusters, cluster_batch, fuse_batch
from pipeline.clip import BATCH
from pipeline.fusion import NOT_IGNORED, THRESHOLD, fuse
from pipeline.kmeans import (
    TORCH,
    UPDATES,
    WINDOWS,
    Assign,
    Clusters,
    assigner,
    backend_name,
    cluster,
    max_centres,
)


@dataclass(frozen=True)
class Masker:
    """Turns dense tokens and a label map into fused pseudo labels (k-means, then fusion).

    Args:
        split: which classes have labels in training; all else is the ignored area.
        grid: tokens (down, across) of a view.
        windows: sides of the k-means windows, in tokens.
        threshold: lambda of Algorithm 1, a cosine similarity.
        updates: Lloyd updates.
        kmeans: who clusters: auto, faiss, faiss-gpu or torch.
        device: where torch does.

    """

    split: Split
    grid: tuple[int, int]
    windows: Sequence[int] = WINDOWS
    threshold: float = THRESHOLD
    updates: int = UPDATES
    kmeans: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise UsageError, one line, for a setting that is none."""
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold:g}: a cosine similarity is between -1 and 1")
        if self.updates < 0:
            raise UsageError(f"--updates {self.updates}: must not be negative")
        if not self.windows or min(self.windows) < 1 or len(set(self.windows)) < len(self.windows):
            raise UsageError(f"--windows {','.join(map(str, self.windows))}: must be different sizes of at least 1")

    @property
    def dtype(self) -> str:
        """Type of the stored labels."""
        return label_dtype(max_centres(self.grid, self.windows))

    def attributes(self) -> dict[str, Any]:
        """How these masks are made, for the mask set's attributes."""
        return {
            "unseen": list(self.split.unseen),
            "windows": list(self.windows),
            "threshold": self.threshold,
            "updates": self.updates,
            "backend": self.backend,
            "dtype": self.dtype,
        }

    @property
    def backend(self) -> str:
        """Who clusters. Raises UsageError for one that is unknown or that this machine does not have."""
        return backend_name(self.kmeans, self.device)

    def __call__(
        self, dense: Tensor | np.ndarray, labels: Sequence[UInt8[np.ndarray, "height width"] | None]
    ) -> tuple[Shaped[np.ndarray, "view y x"], Int[np.ndarray, "view"]]:
        """Fused labels of the tokens of some views (the reserved value where not ignored) and how many each has.

        `dense` is view x y x channel, wherever it is; what comes of a view does not depend on the others.
        """
        return self.masks(dense, np.stack([self.ignored(label) for label in labels]))

    def ignored(self, label: UInt8[np.ndarray, "height width"] | None) -> Bool[np.ndarray, "y x"]:
        """Which tokens of a view are ignored."""
        return ignored_tokens(label, self.split, self.grid)

    def masks(
        self, dense: Tensor | np.ndarray, ignored: Bool[np.ndarray, "view y x"]
    ) -> tuple[Shaped[np.ndarray, "view y x"], Int[np.ndarray, "view"]]:
        """The same where it is known which tokens are ignored."""
        if self.backend == TORCH:
            return self.stored(self.fused(torch.as_tensor(dense), torch.from_numpy(ignored)).numpy(force=True))
        tokens = dense.numpy(force=True) if isinstance(dense, Tensor) else dense
        clusters = (
            cluster(*view, self._assign, self.windows, self.updates) for view in zip(tokens, ignored, strict=True)
        )
        return self.stored(np.stack([fuse(*one, self.threshold) for one in zip(clusters, tokens, strict=True)]))

    def clusters(
        self,
        dense: Float[np.ndarray, "y x channel"],
        label: UInt8[np.ndarray, "height width"] | None,
    ) -> Clusters:
        """The masks of single centres, before fusion."""
        ignored = self.ignored(label)
        if self.backend == TORCH:
            return self._clusters(torch.as_tensor(dense)[None], torch.from_numpy(ignored)[None]).of(0, self.grid)
        return cluster(dense, ignored, self._assign, self.windows, self.updates)

    def stored(
        self, fused: Int[np.ndarray, "view y x"]
    ) -> tuple[Shaped[np.ndarray, "view y x"], Int[np.ndarray, "view"]]:
        """Fused labels as they are stored, and how many each view has."""
        label = np.where(fused == NOT_IGNORED, reserved_label(self.dtype), fused).astype(self.dtype)
        return label, fused.max(axis=(1, 2), initial=NOT_IGNORED).astype(np.int32) + 1

    @cached_property
    def _assign(self) -> Assign:
        return assigner(self.backend, self.device)

    @property
    def queues(self) -> bool:
        """Whether a GPU is to cluster, which is given the work and not waited for."""
        return self.backend == TORCH and torch.device(self.device).type == "cuda"

    def fused(
        self, dense: Float[Tensor, "view y x channel"], ignored: Bool[Tensor, "view y x"]
    ) -> Int[Tensor, "view y x"]:
        """Fused labels by torch, on the device, NOT_IGNORED where a token is not ignored; in batches of equal size."""
        size = self.batch
        parts = range(0, len(dense), size)
        labels = [fuse_batch(self._clusters(dense[i : i + size], ignored[i : i + size]), self.threshold) for i in parts]
        return torch.cat(labels)[: len(dense)].unflatten(1, self.grid)

    def _clusters(self, dense: Float[Tensor, "view y x channel"], ignored: Bool[Tensor, "view y x"]) -> BatchClusters:
        missing = self.batch - len(dense)
        tokens = F.pad(dense.to(self.device), (0, 0, 0, 0, 0, 0, 0, missing))
        everywhere = F.pad(ignored.to(self.device, non_blocking=True), (0, 0, 0, 0, 0, missing))
        return cluster_batch(tokens, everywhere, self.windows, self.updates)

    @property
    def batch(self) -> int:
        """Views that torch clusters at a time; fewer are filled up to it, as rounding may depend on how many."""
        return BATCH[torch.device(self.device).type]


def ignored_tokens(
    label: UInt8[np.ndarray, "height width"] | None, split: Split, grid: tuple[int, int]
) -> Bool[np.ndarray, "y x"]:
    """A token is ignored when at least half of its patch has no seen label (void or unseen).

    Without a label map everything is ignored. Height and width are multiples of the grid's.
    """
    if label is None:
        return np.ones(grid, bool)
    pixels = split.seen_rank()[label] == VOID
    patch = (label.shape[0] // grid[0], label.shape[1] // grid[1])
    share = pixels.reshape(grid[0], patch[0], grid[1], patch[1]).mean(axis=(1, 3))
    return share >= 0.5
