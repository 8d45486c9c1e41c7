"""The content of a cache as arrays in memory: a shard, the text features, and the arrays that training needs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, Shaped

from data_cache.arrays import DENSE_TOKENS, SHARD_FIELDS, blank_fields
from data_cache.layout import Layout

COSINE_TOLERANCE = 1e-6
"""Features whose cosine is within this distance of 1 are equal up to rounding."""
OK = "ok"
"""The status of an image that was encoded; any other status is the reason for its failure."""


@dataclass(frozen=True)
class Texts:
    """Text features of a class list, one L2-normalized row per class, and the prompt templates they average."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    features: Float[np.ndarray, "class channel"]

    @property
    def warnings(self) -> list[str]:
        """A warning if CLIP cannot tell some classes apart."""
        return indistinguishable_warnings(self.classes, self.features)


@dataclass(frozen=True)
class Shard:
    """Stage 1's results for consecutive images. A failed image has fill values, and the reason in `status`."""

    size: Int[np.ndarray, "image 2"]
    content_hash: list[str]
    label_hash: list[str]
    status: list[str]
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    cls: Float16[np.ndarray, "image view channel"]
    dense: Float16[np.ndarray, "image view y x channel"] | None
    label: Shaped[np.ndarray, "image view y x"]
    count: Int[np.ndarray, "image view"]

    @classmethod
    def blank(cls, layout: Layout, images: int, label_dtype: str) -> "Shard":
        """A shard in which every field holds its fill value."""
        names = [field.name for field in fields(cls) if layout.dense != "none" or field.name != "dense"]
        return cls(**{"dense": None, **blank_fields(names, layout, images, label_dtype)})

    def clear(self, row: int) -> None:
        """Reset the view arrays of one image to their fill values, as for a failed image."""
        for spec in (*SHARD_FIELDS.values(), DENSE_TOKENS):
            array = getattr(self, spec.field)
            if "view" in spec.dimensions and array is not None:
                array[row] = spec.fill_value(array.dtype.name)


@dataclass(frozen=True)
class CachedArrays:
    """The part of a cache that training keeps in memory (about 2 KiB per view)."""

    ids: list[str]
    digest: list[tuple[str, str]]
    ok: Bool[np.ndarray, "image"]
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    cls: Float16[np.ndarray, "image view channel"]
    label: Shaped[np.ndarray, "image view y x"]
    count: Int[np.ndarray, "image view"]


def quantize_int8(
    dense: Float16[np.ndarray, "*token channel"],
) -> tuple[Int[np.ndarray, "*token channel"], Float[np.ndarray, "*token"]]:
    """Quantize each token to int8 by its own scale, absolute maximum / 127; returns tokens and scales."""
    scale = np.abs(dense).max(axis=-1).astype(np.float32) / 127
    return np.rint(dense / np.maximum(scale, 1e-30)[..., None]).astype(np.int8), scale


def indistinguishable_classes(
    names: Sequence[str], features: Float[np.ndarray, "class channel"]
) -> list[tuple[str, ...]]:
    """Groups of names whose features are parallel up to rounding, each in the order of the names.

    O(n log n): a list may have 65,535 names.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features.astype(np.float64) / np.maximum(norms, 1e-30)
    # equal rows are neighbors in any random projection, with few other rows between them
    order = np.argsort(unit @ np.random.default_rng(0).normal(size=unit.shape[1]), kind="stable")
    graph = coo_array((len(names), len(names)), dtype=bool)
    for gap in range(1, min(4, len(names))):
        left, right = order[:-gap], order[gap:]
        equal = (unit[left] * unit[right]).sum(axis=1) > 1 - COSINE_TOLERANCE
        graph += coo_array((np.ones(equal.sum(), bool), (left[equal], right[equal])), shape=graph.shape)
    _, components = connected_components(graph, directed=False)
    groups: dict[int, list[str]] = {}
    for name, component in zip(names, components, strict=True):
        groups.setdefault(int(component), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def indistinguishable_warnings(names: Sequence[str], features: Float[np.ndarray, "class channel"]) -> list[str]:
    """A warning if a model trained with these text features cannot tell some classes apart; otherwise no warning.

    Examples are names that differ only in case, and words that a small CLIP never learned.
    """
    groups = indistinguishable_classes(names, features)
    if not groups:
        return []
    first = " and ".join(f"'{name[:40]}'" for name in groups[0][:4]) + (" and others" if len(groups[0]) > 4 else "")
    more = f", and {len(groups) - 1} more such groups" if len(groups) > 1 else ""
    return [f"this CLIP cannot tell {first} apart (same text features{more}); rename or merge these classes"]
