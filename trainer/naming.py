"""Names of pseudo labels among the unseen classes, for transductive training: names are known, labels are not.

The CLS token says which of the names an image shows, but not where; dense tokens say where, but are weak against texts.
So a linear regression over all pseudo labels of the cache learns which names the images show that have a pseudo label
of a certain appearance: a background is in images of every kind, and predicts no name; a tiger is in images that show a
tiger.

Several training processes share the images: each reads the dense tokens of its own, and the sums of the regression are
those of all.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int16

from data_cache.content import CachedArrays
from data_cache.errors import UsageError, UserError
from data_cache.layout import reserved_label
from data_cache.reader import Cache
from data_cache.splits import Split
from trainer.distributed.ranks import all_gather, all_reduce_sum, rank, world_size

ANONYMOUS = -1
"""The name of a pseudo label that is not clearly one of the unseen classes."""
SHOWN, EXPECTED, RIDGE, ROUNDS = 0.3, 0.6, 0.05, 6
"""Least standardized similarity of the image, least prediction for the pseudo label, strength of the regression's
penalty as a share of the mean variance, and rounds (docs/decisions/method.md#names-of-pseudo-labels)."""
BLOCK = 2**16
"""Rows that are multiplied at a time, in double precision, so that names do not depend on the number of threads."""


def name_pseudo_labels(
    cache: Cache, loaded: CachedArrays, split: Split, text: Float32[np.ndarray, "class channel"]
) -> Int16[np.ndarray, "image view label"]:
    """The name of each pseudo label: its rank among the unseen classes, or `ANONYMOUS`.

    Raises UsageError if no class is unseen, and UserError if dense tokens are not stored or damaged.
    """
    if not split.unseen:
        raise UsageError(
            f"--transductive: {cache.path} has no unseen classes to name; omit it, or choose other --masks"
        )
    try:
        cache.check_dense()
    except UserError as error:
        raise error.prefixed("--transductive: ") from None
    shown = np.zeros((*loaded.count.shape, len(split.unseen)))
    cls = loaded.cls[loaded.ok]
    similarity = _products(_unit(cls.reshape(-1, cls.shape[2])), text[split.unseen_index])
    shown[loaded.ok] = standardized(similarity).reshape(*cls.shape[:2], -1)
    names = np.full((*loaded.count.shape, max(1, int(loaded.count.max()))), ANONYMOUS, np.int16)
    is_label = np.arange(names.shape[2]) < loaded.count[:, :, None]
    if is_label.any():
        own = np.array_split(np.arange(len(loaded.ok)), world_size())[rank()]
        image, view, _ = is_label[own].nonzero()
        found = regressed_names(*label_centroids(cache, loaded, own), shown[own[image], view])
        names[is_label] = all_gather(torch.from_numpy(found)).numpy()
    return names


def standardized(similarity: Float[np.ndarray, "view name"]) -> Float[np.ndarray, "view name"]:
    """The values of each name with mean 0 and standard deviation 1: some names are similar to every image."""
    centered = similarity - similarity.mean(axis=0)
    return centered / np.maximum(centered.std(axis=0), 1e-9)


def regressed_names(
    centroids: Float32[np.ndarray, "label channel"],
    tokens: Int[np.ndarray, "label"],
    shown: Float[np.ndarray, "label name"],
) -> Int[np.ndarray, "label"]:
    """The name of each pseudo label, by ridge regression on its centroid.

    The first round predicts how clearly the image shows each name, the others which pseudo labels got it before. A
    pseudo label gets the name of its greatest prediction if that is above `EXPECTED`, and its image shows the name.

    Args:
        centroids: L2-normalized mean dense token of each pseudo label.
        tokens: its number of tokens, the weight in the regression.
        shown: standardized similarity of its image to each name.

    """
    constant, rows = np.ones((len(tokens), 1)), np.arange(len(tokens))
    total = _moments(constant, constant, tokens).item()
    center = _moments(centroids, constant, tokens)[:, 0] / total
    # the same as of centered centroids, of which a large cache has no room for a copy
    gram = _moments(centroids, centroids, tokens) - total * np.outer(center, center)
    gram[np.diag_indices_from(gram)] += max(RIDGE * gram.trace() / len(gram), 1e-9)
    target = shown
    for _ in range(ROUNDS):
        mean = _moments(target, constant, tokens)[:, 0] / total
        slope = np.linalg.solve(gram, _moments(centroids, target - mean, tokens))
        expected = mean - center @ slope + _products(centroids, slope.T)
        best = expected.argmax(axis=1)
        clear = (expected[rows, best] > EXPECTED) & (shown[rows, best] > SHOWN)
        names = np.where(clear, best, ANONYMOUS)
        target = (names[:, None] == np.arange(shown.shape[1])).astype(np.float64)
    return names


def label_centroids(
    cache: Cache, loaded: CachedArrays, images: Int[np.ndarray, "image"]
) -> tuple[Float32[np.ndarray, "label channel"], Int[np.ndarray, "label"]]:
    """The L2-normalized mean of CLIP's normalized dense tokens at each pseudo label of `images`, and how many it has.

    Masks may have another grid than CLIP's tokens; each of their cells then has the nearest token.

    Raises UserError if dense tokens are damaged.
    """
    total, first = int(loaded.count[images].sum()), 0
    centroids, sizes = np.empty((total, cache.layout.channels), np.float32), np.empty(total, np.int64)
    y, x = (np.arange(n) * m // n for n, m in zip(loaded.label.shape[2:], cache.layout.grid, strict=True))
    for image in images[loaded.count[images].any(axis=1)].tolist():
        dense = cache.dense(image)
        for view, count in enumerate(loaded.count[image].tolist()):
            label = loaded.label[image, view].ravel().astype(np.int64)
            clustered = label != reserved_label(loaded.label.dtype.name)
            tokens = _unit(dense[view][y[:, None], x].reshape(len(label), -1)[clustered])
            member = (label[clustered] == np.arange(count)[:, None]).astype(np.float32)
            sizes[first : first + count] = member.sum(axis=1)
            centroids[first : first + count] = _unit(member @ tokens)
            first += count
    return centroids, sizes


def _unit(rows: Float[np.ndarray, "row channel"]) -> Float32[np.ndarray, "row channel"]:
    rows = rows.astype(np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _products(
    rows: Float[np.ndarray, "row channel"], columns: Float[np.ndarray, "column channel"]
) -> Float[np.ndarray, "row column"]:
    return np.concatenate([rows[part].astype(np.float64) @ columns.T.astype(np.float64) for part in _blocks(rows)])


def _moments(
    rows: Float[np.ndarray, "row channel"], values: Float[np.ndarray, "row value"], weights: Int[np.ndarray, "row"]
) -> Float[np.ndarray, "channel value"]:
    """The sum over the rows of all processes of weight * row * value."""
    parts = (rows[part].T.astype(np.float64) @ (weights[part, None] * values[part]) for part in _blocks(rows))
    return all_reduce_sum(torch.from_numpy(sum(parts, np.zeros((rows.shape[1], values.shape[1]))))).numpy()


def _blocks(rows: Float[np.ndarray, "row channel"]) -> Iterator[slice]:
    return (slice(start, start + BLOCK) for start in range(0, max(1, len(rows)), BLOCK))
