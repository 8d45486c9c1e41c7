"""Pseudo masks of views: which tokens are ignored, and the fused label of each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.errors import UsageError
from data_cache.layout import label_dtype, reserved_label
from data_cache.reader import Cache
from data_cache.splits import Split
from pipeline.masks.batched import BatchClusters, cluster_batch, fuse_batch
from pipeline.masks.fusion import NOT_IGNORED, THRESHOLD, fuse
from pipeline.masks.kmeans import (
    TORCH,
    UPDATES,
    WINDOWS,
    Assign,
    Clusters,
    assigner,
    backend_name,
    cluster,
    max_centers,
)
from pipeline.teacher.clip import BATCH


@dataclass(frozen=True)
class Masker:
    """Turns dense tokens and a label map into fused pseudo labels (k-means, then fusion).

    Args:
        split: which classes have labels in training; everything else is the ignored area.
        grid: tokens of a view (rows, columns).
        windows: sides of the k-means windows, in tokens.
        threshold: lambda of Algorithm 1, a cosine similarity.
        updates: Lloyd updates.
        kmeans: the backend: auto, faiss, faiss-gpu or torch.
        device: where the torch backend runs.

    """

    split: Split
    grid: tuple[int, int]
    windows: Sequence[int] = WINDOWS
    threshold: float = THRESHOLD
    updates: int = UPDATES
    kmeans: str = "auto"
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Raise UsageError for an invalid setting."""
        if not -1 <= self.threshold <= 1:
            raise UsageError(f"--threshold {self.threshold:g}: a cosine similarity is between -1 and 1")
        if self.updates < 0:
            raise UsageError(f"--updates {self.updates}: must not be negative")
        if not self.windows or min(self.windows) < 1 or len(set(self.windows)) < len(self.windows):
            raise UsageError(f"--windows {','.join(map(str, self.windows))}: must be different sizes of at least 1")

    @classmethod
    def of_masks(cls, cache: Cache, masks: str, device: str = "cpu", kmeans: str | None = None) -> Self:
        """The clustering that made a mask set of a cache; `kmeans` overrides its backend."""
        attributes = cache.mask_attributes(masks)
        # this machine may have no GPU, and all backends agree
        backend = "auto" if attributes["backend"] == "faiss-gpu" else attributes["backend"]
        return cls(
            split=Split(cache.texts().classes, tuple(attributes["unseen"])),
            grid=cache.mask_layout(masks).grid,
            windows=tuple(attributes["windows"]),
            threshold=attributes["threshold"],
            updates=attributes["updates"],
            kmeans=kmeans or backend,
            device=device,
        )

    @property
    def dtype(self) -> str:
        """Data type of the stored labels."""
        return label_dtype(max_centers(self.grid, self.windows))

    def attributes(self) -> dict[str, Any]:
        """The settings, as stored in the attributes of a mask set."""
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
        """The resolved backend. Raises UsageError if it is unknown or not available on this machine."""
        return backend_name(self.kmeans, self.device)

    def __call__(
        self, dense: Tensor | np.ndarray, labels: Sequence[UInt8[np.ndarray, "height width"] | None]
    ) -> tuple[Shaped[np.ndarray, "view y x"], Int[np.ndarray, "view"]]:
        """Fused labels of each view (the reserved value where not ignored), and the number of labels of each view.

        `dense` is view x y x channel, on any device. The result of a view does not depend on the other views. A view
        whose tokens are all zero, because they were not finite, has no labels.
        """
        ignored = np.stack([self.ignored(label) for label in labels])
        return self.masks(dense, ignored & has_tokens(dense)[:, None, None])

    def ignored(
        self, label: UInt8[np.ndarray, "height width"] | None, values: Integer[np.ndarray, "value"] | None = None
    ) -> Bool[np.ndarray, "y x"]:
        """Which tokens of a view are ignored. `values` are all that may occur in its label map, if they are known."""
        return ignored_tokens(label, self.split, self.grid, values)

    def masks(
        self, dense: Tensor | np.ndarray, ignored: Bool[np.ndarray, "view y x"]
    ) -> tuple[Shaped[np.ndarray, "view y x"], Int[np.ndarray, "view"]]:
        """As `__call__`, given the ignored tokens."""
        if self.backend == TORCH:
            return self.to_stored(
                self.fuse_on_device(torch.as_tensor(dense), torch.from_numpy(ignored)).numpy(force=True)
            )
        tokens = dense.numpy(force=True) if isinstance(dense, Tensor) else dense
        clusters = (
            cluster(*view, self._assign, self.windows, self.updates) for view in zip(tokens, ignored, strict=True)
        )
        return self.to_stored(np.stack([fuse(*one, self.threshold) for one in zip(clusters, tokens, strict=True)]))

    def clusters(
        self,
        dense: Float[np.ndarray, "y x channel"],
        label: UInt8[np.ndarray, "height width"] | None,
    ) -> Clusters:
        """The mask of each center, before fusion; none if the tokens are all zero."""
        ignored = self.ignored(label) & has_tokens(dense[None])
        if self.backend == TORCH:
            return self._clusters(torch.as_tensor(dense)[None], torch.from_numpy(ignored)[None]).view(0, self.grid)
        return cluster(dense, ignored, self._assign, self.windows, self.updates)

    def to_stored(
        self, fused: Int[np.ndarray, "view y x"]
    ) -> tuple[Shaped[np.ndarray, "view y x"], Int[np.ndarray, "view"]]:
        """Fused labels as stored, and the number of labels of each view."""
        label = np.where(fused == NOT_IGNORED, reserved_label(self.dtype), fused).astype(self.dtype)
        return label, fused.max(axis=(1, 2), initial=NOT_IGNORED).astype(np.int32) + 1

    @cached_property
    def _assign(self) -> Assign:
        return assigner(self.backend, self.device)

    @property
    def asynchronous(self) -> bool:
        """Whether clustering runs on a GPU, asynchronously to the host."""
        return self.backend == TORCH and torch.device(self.device).type == "cuda"

    def fuse_on_device(
        self, dense: Float[Tensor, "view y x channel"], ignored: Bool[Tensor, "view y x"]
    ) -> Int[Tensor, "view y x"]:
        """Fused labels, computed by torch in batches of equal size; NOT_IGNORED where a token is not ignored."""
        size = self.batch
        parts = range(0, len(dense), size)
        labels = [fuse_batch(self._clusters(dense[i : i + size], ignored[i : i + size]), self.threshold) for i in parts]
        return torch.cat(labels)[: len(dense)].unflatten(1, self.grid)

    def _clusters(self, dense: Float[Tensor, "view y x channel"], ignored: Bool[Tensor, "view y x"]) -> BatchClusters:
        missing = self.batch - len(dense)
        tokens = F.pad(dense.to(self.device), (0, 0, 0, 0, 0, 0, 0, missing))
        padded = F.pad(ignored.to(self.device, non_blocking=True), (0, 0, 0, 0, 0, missing))
        return cluster_batch(tokens, padded, self.windows, self.updates)

    @property
    def batch(self) -> int:
        """Views that torch clusters at once. Fewer are padded to it, because rounding may depend on the batch size."""
        return BATCH[torch.device(self.device).type]


def has_tokens(dense: Tensor | np.ndarray) -> Bool[np.ndarray, "view"]:
    """Whether each view has tokens: they are all zero if they were not finite (`TokenModel.tokens`)."""
    return np.array([bool(view.any()) for view in dense])


def ignored_tokens(
    label: UInt8[np.ndarray, "height width"] | None,
    split: Split,
    grid: tuple[int, int],
    values: Integer[np.ndarray, "value"] | None = None,
) -> Bool[np.ndarray, "y x"]:
    """A token is ignored when at least half of its patch has no seen label (void or unseen).

    Without a label map everything is ignored. Height and width are multiples of the grid's. `values` are all that may
    occur in the label map, if they are known.
    """
    if label is None:
        return np.ones(grid, bool)
    down, across = label.shape[0] // grid[0], label.shape[1] // grid[1]
    # sum over rows first: numpy is fast at that
    rows = split.is_hidden(label, values).view(np.uint8).reshape(grid[0], down, -1).sum(axis=1, dtype=np.uint16)
    return 2 * rows.reshape(*grid, across).sum(axis=2, dtype=np.uint32) >= down * across
