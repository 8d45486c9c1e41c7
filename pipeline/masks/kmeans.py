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
Centres = Float[np.ndarray, "centre channel"]
Assign = Callable[[Points, Centres], Int[np.ndarray, "point"]]
"""Index of the centre of greatest inner product for each point; equal ones go to the lower index."""

WINDOWS = (3, 7)
UPDATES = 10


@dataclass(frozen=True)
class Clusters:
    """All scales of one image, stacked: centres T, binary masks M, and the scale each centre belongs to."""

    centres: Float[np.ndarray, "centre channel"]
    masks: Bool[np.ndarray, "centre y x"]
    scale: Int[np.ndarray, "centre"]


def normalised(vectors: Float[np.ndarray, "... channel"]) -> Float[np.ndarray, "... channel"]:
    """L2-normalise in float32; a zero vector stays zero."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def window_centres(points: Points, ignored: Bool[np.ndarray, "y x"], window: int) -> Centres:
    """Initial centres (eq. 5): the mean of the ignored tokens (`points`) of each window, windows in reading order.

    Windows do not overlap; those at the border may be partial; one without ignored tokens gives no centre.
    """
    y, x = np.nonzero(ignored)
    down, across = (-(-side // window) for side in ignored.shape)
    return _GroupMeans(points, down * across).means(y // window * across + x // window)[0]


def spherical_kmeans(
    points: Points, centres: Centres, assign: Assign, updates: int = UPDATES
) -> tuple[Centres, Int[np.ndarray, "point"]]:
    """Lloyd's algorithm on the unit sphere: `updates` rounds of assign and re-centre, then a last assignment.

    A centre without points at an update is dropped, so fewer centres may come back than went in.
    """
    previous, groups = None, _GroupMeans(points, len(centres))
    for _ in range(updates):
        labels = assign(points, centres)
        # converged: all further updates would give the same
        if previous is not None and np.array_equal(labels, previous):
            return centres, labels
        centres, previous = groups.means(labels)
    return centres, assign(points, centres)


class _GroupMeans:
    """Computes means of groups of the same points again and again, of up to `most` groups at a time."""

    def __init__(self, points: Points, most: int) -> None:
        self._points, count = points, len(points)
        # many times as fast as numpy, adds in the order of the points, and, unlike torch, uses one thread: waking the
        # threads that run CLIP takes ten times as long as so small a task
        self._membership = csc_array((np.ones(count, np.float32), np.zeros(count), np.arange(count + 1)), (most, count))

    def means(self, labels: Int[np.ndarray, "point"]) -> tuple[Centres, Int[np.ndarray, "point"]]:
        """The direction of the mean of the points of each label that occurs; and the labels numbered without gaps."""
        occurs = np.bincount(labels) > 0
        group = (occurs.cumsum() - 1)[labels]
        self._membership.indices[:] = group
        return normalised((self._membership @ self._points)[: occurs.sum()]), group


def cluster(
    dense: Float[np.ndarray, "y x channel"],
    ignored: Bool[np.ndarray, "y x"],
    assign: Assign,
    windows: Sequence[int] = WINDOWS,
    updates: int = UPDATES,
) -> Clusters:
    """Cluster the ignored tokens of one image, separately for each window size."""
    points = normalised(dense[ignored])
    centres, masks, scale = [], [], []
    for index, window in enumerate(windows):
        if not len(points):
            break
        scale_centres, labels = spherical_kmeans(points, window_centres(points, ignored, window), assign, updates)
        mask = np.zeros((len(scale_centres), *ignored.shape), bool)
        mask[:, ignored] = labels == np.arange(len(scale_centres))[:, None]
        centres.append(scale_centres)
        masks.append(mask)
        scale.append(np.full(len(scale_centres), index))
    if not centres:
        return Clusters(points, np.zeros((0, *ignored.shape), bool), np.zeros(0, int))
    return Clusters(np.concatenate(centres), np.concatenate(masks), np.concatenate(scale))


def max_centres(grid: tuple[int, int], windows: Sequence[int]) -> int:
    """The greatest number of centres, hence of labels, that an image can have."""
    return sum(-(-grid[0] // window) * -(-grid[1] // window) for window in windows)


# -- backends: what computes the assignment --------------------------------------------------------------------


_GPU_LOCK = Lock()
TORCH = "torch"
"""Batches of images on a torch device (`pipeline.masks.batched`); the other backends take one image at a time."""


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
    """The assignment of one image's tokens by FAISS, on a GPU (that of `device`, or the first) or on one thread."""
    if backend == "faiss-gpu":
        return partial(_assign_faiss_gpu, faiss.StandardGpuResources(), torch.device(device).index or 0)
    return assign_faiss


def assign_faiss(points: Points, centres: Centres) -> Int[np.ndarray, "point"]:
    """Exact search by FAISS on one thread: the problem is tiny, and two threads are several times slower."""
    with _one_thread():
        return faiss.knn(points, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]


def _assign_faiss_gpu(resources: Any, gpu: int, points: Points, centres: Centres) -> Int[np.ndarray, "point"]:
    with _GPU_LOCK:  # FAISS's scratch memory serves one thread at a time
        return faiss.knn_gpu(resources, points, centres, 1, metric=faiss.METRIC_INNER_PRODUCT, device=gpu)[1][:, 0]


@contextmanager
def _one_thread() -> Iterator[None]:
    # FAISS and torch may share one OpenMP runtime, so the setting must be restored
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
