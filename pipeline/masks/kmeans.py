"""Multi-scale spherical k-means on the ignored tokens of one image (eq. 4-5; docs/decisions/method.md#window-means)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import faiss
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array

from data_cache.errors import UsageError

Points = Float[np.ndarray, "point channel"]
Centers = Float[np.ndarray, "center channel"]
Assign = Callable[[Points, Centers], Int[np.ndarray, "point"]]
"""Index of the center with the greatest inner product for each point; ties go to the lower index."""

WINDOWS = (3, 7)
UPDATES = 10


@dataclass(frozen=True)
class Clusters:
    """All scales of one image, stacked: centers T, binary masks M, and the scale each center belongs to."""

    centers: Float[np.ndarray, "center channel"]
    masks: Bool[np.ndarray, "center y x"]
    scale: Int[np.ndarray, "center"]


def normalized(vectors: Float[np.ndarray, "... channel"]) -> Float[np.ndarray, "... channel"]:
    """L2-normalize in float32; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def window_centers(points: Points, ignored: Bool[np.ndarray, "y x"], window: int) -> Centers:
    """Initial centers (eq. 5): the mean of the ignored tokens (`points`) of each window, windows in reading order.

    Windows do not overlap, and those at the border may be partial. A window without ignored tokens gives no center.
    """
    y, x = np.nonzero(ignored)
    down, across = (-(-side // window) for side in ignored.shape)
    return _GroupMeans(points, down * across).means(y // window * across + x // window)[0]


def spherical_kmeans(
    points: Points, centers: Centers, assign: Assign, updates: int = UPDATES
) -> tuple[Centers, Int[np.ndarray, "point"]]:
    """Lloyd's algorithm on the unit sphere: `updates` rounds of assignment and recentering, then a last assignment.

    A center without points at an update is dropped, so fewer centers may be returned than were passed.
    """
    previous, groups = None, _GroupMeans(points, len(centers))
    for _ in range(updates):
        labels = assign(points, centers)
        # converged: further updates change nothing
        if previous is not None and np.array_equal(labels, previous):
            return centers, labels
        centers, previous = groups.means(labels)
    return centers, assign(points, centers)


class _GroupMeans:
    """Computes means of groups of the same points repeatedly, for up to `max_groups` groups."""

    def __init__(self, points: Points, max_groups: int) -> None:
        self._points, count = points, len(points)
        # A sparse product is many times as fast as numpy, adds in the order of the points, and, unlike torch, uses one
        # thread: waking the threads that run CLIP takes ten times as long as this small task.
        ones, rows, starts = np.ones(count, np.float32), np.zeros(count), np.arange(count + 1)
        self._membership = csc_array((ones, rows, starts), (max_groups, count))

    def means(self, labels: Int[np.ndarray, "point"]) -> tuple[Centers, Int[np.ndarray, "point"]]:
        """The normalized mean of the points of each label that occurs, and the labels renumbered without gaps."""
        occurs = np.bincount(labels) > 0
        group = (occurs.cumsum() - 1)[labels]
        self._membership.indices[:] = group
        return normalized((self._membership @ self._points)[: occurs.sum()]), group


def cluster(
    dense: Float[np.ndarray, "y x channel"],
    ignored: Bool[np.ndarray, "y x"],
    assign: Assign,
    windows: Sequence[int] = WINDOWS,
    updates: int = UPDATES,
) -> Clusters:
    """Cluster the ignored tokens of one image, separately for each window size."""
    points = normalized(dense[ignored])
    centers, masks, scale = [], [], []
    for index, window in enumerate(windows):
        if not len(points):
            break
        scale_centers, labels = spherical_kmeans(points, window_centers(points, ignored, window), assign, updates)
        mask = np.zeros((len(scale_centers), *ignored.shape), bool)
        mask[:, ignored] = labels == np.arange(len(scale_centers))[:, None]
        centers.append(scale_centers)
        masks.append(mask)
        scale.append(np.full(len(scale_centers), index))
    if not centers:
        return Clusters(points, np.zeros((0, *ignored.shape), bool), np.zeros(0, int))
    return Clusters(np.concatenate(centers), np.concatenate(masks), np.concatenate(scale))


def max_centers(grid: tuple[int, int], windows: Sequence[int]) -> int:
    """The maximum number of centers, and so of labels, of an image."""
    return sum(-(-grid[0] // window) * -(-grid[1] // window) for window in windows)


# -- backends: what computes the assignment --------------------------------------------------------------------


_GPU_LOCK = Lock()
TORCH = "torch"
"""Clusters batches of images on a torch device (`pipeline.masks.batched`); other backends take one image at a time."""


def backend_name(choice: str, device: str) -> str:
    """Resolve `--kmeans`: `auto` is torch on a GPU and FAISS on a CPU. Raises UsageError for an unknown one.

    On a CPU FAISS is faster (`benchmarks/kmeans_backends.py`); on a GPU one call per image would be slower than CLIP.
    """
    if choice == "auto":
        return "faiss" if device == "cpu" else TORCH
    if choice not in ("faiss", "faiss-gpu", TORCH):
        raise UsageError(f"--kmeans {choice}: choose auto, faiss, faiss-gpu or torch")
    if choice == "faiss-gpu" and not faiss.get_num_gpus():
        raise UsageError("--kmeans faiss-gpu: FAISS sees no GPU; pass --kmeans faiss")
    return choice


def assigner(backend: str, device: str = "cpu") -> Assign:
    """FAISS's assignment of the tokens of one image: on a GPU (that of `device`, or the first) or on one CPU thread."""
    if backend == "faiss-gpu":
        return partial(_assign_faiss_gpu, faiss.StandardGpuResources(), torch.device(device).index or 0)
    return assign_faiss


def assign_faiss(points: Points, centers: Centers) -> Int[np.ndarray, "point"]:
    """Exact search by FAISS on one thread: the problem is tiny, and two threads would be several times slower."""
    with _one_thread():
        return faiss.knn(points, centers, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]


def _assign_faiss_gpu(resources: Any, gpu: int, points: Points, centers: Centers) -> Int[np.ndarray, "point"]:
    with _GPU_LOCK:  # FAISS's scratch memory is not thread-safe
        return faiss.knn_gpu(resources, points, centers, 1, metric=faiss.METRIC_INNER_PRODUCT, device=gpu)[1][:, 0]


@contextmanager
def _one_thread() -> Iterator[None]:
    # FAISS and torch may share one OpenMP runtime, so the setting must be restored
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
