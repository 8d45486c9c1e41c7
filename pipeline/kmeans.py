"""Multi-scale spherical k-means on the ignored tokens of one image (eq. 4-5; DESIGN, section 2)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
from jaxtyping import Bool, Float, Int

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
    vectors = vectors.astype(np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def window_centres(tokens: Float[np.ndarray, "y x channel"], ignored: Bool[np.ndarray, "y x"], window: int) -> Centres:
    """Initial centres (eq. 5): the mean of the ignored tokens of each window, windows in reading order.

    Windows do not overlap; those at the border may be partial; one without ignored tokens gives no centre.
    """
    height, width = ignored.shape
    centres = [
        tokens[y : y + window, x : x + window][ignored[y : y + window, x : x + window]].mean(axis=0)
        for y in range(0, height, window)
        for x in range(0, width, window)
        if ignored[y : y + window, x : x + window].any()
    ]
    return normalised(np.stack(centres)) if centres else np.zeros((0, tokens.shape[-1]), np.float32)


def spherical_kmeans(
    points: Points, centres: Centres, assign: Assign, updates: int = UPDATES
) -> tuple[Centres, Int[np.ndarray, "point"]]:
    """Lloyd's algorithm on the unit sphere: `updates` rounds of assign and re-centre, then a last assignment.

    A centre without points at an update is dropped, so fewer centres may come back than went in.
    """
    for _ in range(updates):
        labels = assign(points, centres)
        order = np.argsort(labels, kind="stable")
        _, starts = np.unique(labels[order], return_index=True)
        sums = np.add.reduceat(points[order], starts, axis=0)
        centres = normalised(sums)  # the direction of a sum is that of the mean
    return centres, assign(points, centres)


def cluster(
    dense: Float[np.ndarray, "y x channel"],
    ignored: Bool[np.ndarray, "y x"],
    assign: Assign,
    windows: Sequence[int] = WINDOWS,
    updates: int = UPDATES,
) -> Clusters:
    """Cluster the ignored tokens of one image once for each window size, separately."""
    tokens = normalised(dense)
    points = tokens[ignored]
    centres, masks, scale = [], [], []
    for index, window in enumerate(windows):
        if not len(points):
            break
        found, labels = spherical_kmeans(points, window_centres(tokens, ignored, window), assign, updates)
        mask = np.zeros((len(found), *ignored.shape), bool)
        mask[:, ignored] = labels == np.arange(len(found))[:, None]
        centres.append(found)
        masks.append(mask)
        scale.append(np.full(len(found), index))
    if not centres:
        empty = np.zeros((0, tokens.shape[-1]), np.float32)
        return Clusters(empty, np.zeros((0, *ignored.shape), bool), np.zeros(0, int))
    return Clusters(np.concatenate(centres), np.concatenate(masks), np.concatenate(scale))


def max_centres(grid: tuple[int, int], windows: Sequence[int]) -> int:
    """The most centres, hence labels, an image can have."""
    return sum(-(-grid[0] // window) * -(-grid[1] // window) for window in windows)


# -- backends: who computes the assignment ---------------------------------------------------------------------


def backend(name: str) -> tuple[str, Assign]:
    """Resolve `--kmeans`: `auto` takes FAISS on the CPU. Raises UsageError for an unknown or impossible one."""
    if name in ("auto", "faiss"):
        return "faiss", assign_faiss
    if name == "faiss-gpu":
        if not faiss.get_num_gpus():
            raise UsageError("--kmeans faiss-gpu: FAISS sees no GPU; pass --kmeans faiss")
        return "faiss-gpu", partial(_assign_faiss_gpu, faiss.StandardGpuResources())
    raise UsageError(f"--kmeans {name}: choose auto, faiss or faiss-gpu")


def assign_faiss(points: Points, centres: Centres) -> Int[np.ndarray, "point"]:
    """Exact search by FAISS on one thread: the problem is tiny, and two threads were several times slower."""
    with _one_thread():
        return faiss.knn(points, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]


def _assign_faiss_gpu(resources: Any, points: Points, centres: Centres) -> Int[np.ndarray, "point"]:
    return faiss.knn_gpu(resources, points, centres, 1, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 0]


@contextmanager
def _one_thread() -> Iterator[None]:
    # FAISS and torch may share one OpenMP runtime: whatever is set here must be put back
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
