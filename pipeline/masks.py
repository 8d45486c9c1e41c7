"""Pseudo masks of a view: which tokens are ignored, and the fused label of each of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from data_cache.datasets.base import VOID
from data_cache.errors import UsageError
from data_cache.schema import label_dtype, reserved_label
from data_cache.splits import Split
from pipeline.fusion import NOT_IGNORED, THRESHOLD, fuse
from pipeline.kmeans import UPDATES, WINDOWS, Assign, Clusters, backend, cluster, max_centres


@dataclass(frozen=True)
class Masker:
    """Turns dense tokens and a label map into fused pseudo labels (k-means, then fusion).

    Args:
        split: which classes have labels in training; all else is the ignored area.
        grid: tokens (down, across) of a view.
        windows: sides of the k-means windows, in tokens.
        threshold: lambda of Algorithm 1, a cosine similarity.
        updates: Lloyd updates.
        kmeans: who assigns tokens to centres: auto, faiss or faiss-gpu.

    """

    split: Split
    grid: tuple[int, int]
    windows: Sequence[int] = WINDOWS
    threshold: float = THRESHOLD
    updates: int = UPDATES
    kmeans: str = "auto"

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
            "backend": backend(self.kmeans)[0],
            "dtype": self.dtype,
        }

    def __call__(
        self,
        dense: Float[np.ndarray, "y x channel"],
        label: UInt8[np.ndarray, "height width"] | None,
    ) -> tuple[Shaped[np.ndarray, "y x"], int]:
        """Fused labels of a view's tokens (the reserved value where not ignored) and how many there are."""
        return self.fused(self.clusters(dense, label), dense)

    def clusters(
        self,
        dense: Float[np.ndarray, "y x channel"],
        label: UInt8[np.ndarray, "height width"] | None,
    ) -> Clusters:
        """The masks of single centres, before fusion."""
        ignored = ignored_tokens(label, self.split, self.grid)
        return cluster(dense, ignored, self._assign, self.windows, self.updates)

    def fused(
        self, clusters: Clusters, dense: Float[np.ndarray, "y x channel"]
    ) -> tuple[Shaped[np.ndarray, "y x"], int]:
        """The labels these clusters are fused to, as they are stored, and how many there are."""
        fused = fuse(clusters, dense, self.threshold)
        stored = np.where(fused == NOT_IGNORED, reserved_label(self.dtype), fused).astype(self.dtype)
        return stored, int(fused.max(initial=NOT_IGNORED)) + 1

    @cached_property
    def _assign(self) -> Assign:
        return backend(self.kmeans)[1]


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
