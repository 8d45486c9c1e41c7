"""What a cache holds, as arrays in memory: one shard of it, its text features, and what training needs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, Shaped

from data_cache.arrays import DENSE_TOKENS, SHARD_FIELDS, blank
from data_cache.layout import Layout

SAME = 1e-6
"""Cosines that differ by less from 1 differ by rounding."""
OK = "ok"
"""The status of an image that worked; any other is the reason why it did not."""


@dataclass(frozen=True)
class Texts:
    """Text features of a class list: one L2-normalised row a class, and the prompts they were made from."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    features: Float[np.ndarray, "class channel"]

    @property
    def warnings(self) -> list[str]:
        """A sentence if there are classes that CLIP cannot tell apart."""
        return alike_classes(self.classes, self.features)


@dataclass(frozen=True)
class Shard:
    """What stage 1 knows of some consecutive images; failed images carry zeros and their reason in `status`."""

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
        """A shard of images of which nothing is known yet: every field holds its fill value."""
        names = [field.name for field in fields(cls) if layout.dense != "none" or field.name != "dense"]
        return cls(**{"dense": None, **blank(names, layout, images, label_dtype)})

    def clear(self, row: int) -> None:
        """Give one image the fill value in every array of its views, as a failed image has."""
        for spec in (*SHARD_FIELDS.values(), DENSE_TOKENS):
            array = getattr(self, spec.field)
            if "view" in spec.dimensions and array is not None:
                array[row] = spec.fill_value(array.dtype.name)


@dataclass(frozen=True)
class Loaded:
    """The part of a cache that training keeps in memory (about 2 KiB a view)."""

    ids: list[str]
    digest: list[tuple[str, str]]
    ok: Bool[np.ndarray, "image"]
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    cls: Float16[np.ndarray, "image view channel"]
    label: Shaped[np.ndarray, "image view y x"]
    count: Int[np.ndarray, "image view"]


def quantised(
    dense: Float16[np.ndarray, "*token channel"],
) -> tuple[Int[np.ndarray, "*token channel"], Float[np.ndarray, "*token"]]:
    """Tokens in 8 bits: each divided by a scale of its own, so that its greatest number becomes 127."""
    scale = np.abs(dense).max(axis=-1).astype(np.float32) / 127
    return np.rint(dense / np.maximum(scale, 1e-30)[..., None]).astype(np.int8), scale


def alike(names: Sequence[str], features: Float[np.ndarray, "class channel"]) -> list[tuple[str, ...]]:
    """Groups of names whose features point the same way, but for rounding; each group in the order of the names.

    Linear in the names but for a sort: a list may have 65,535 of them.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features.astype(np.float64) / np.maximum(norms, 1e-30)
    # equal rows are neighbours along any direction; others that come between them there are few
    order = np.argsort(unit @ np.random.default_rng(0).normal(size=unit.shape[1]), kind="stable")
    graph = coo_array((len(names), len(names)), dtype=bool)
    for gap in range(1, min(4, len(names))):
        one, other = order[:-gap], order[gap:]
        same = (unit[one] * unit[other]).sum(axis=1) > 1 - SAME
        graph += coo_array((np.ones(same.sum(), bool), (one[same], other[same])), shape=graph.shape)
    _, group = connected_components(graph, directed=False)
    found: dict[int, list[str]] = {}
    for name, number in zip(names, group, strict=True):
        found.setdefault(int(number), []).append(name)
    return [tuple(members) for members in found.values() if len(members) > 1]


def alike_classes(names: Sequence[str], features: Float[np.ndarray, "class channel"]) -> list[str]:
    """A sentence for the classes that nothing trained with these text features can tell apart; none if there are none.

    Such are names that differ in capitals alone, and words that a small CLIP never learnt.
    """
    groups = alike(names, features)
    if not groups:
        return []
    first = " and ".join(f"'{name[:40]}'" for name in groups[0][:4]) + (" and others" if len(groups[0]) > 4 else "")
    more = f", and {len(groups) - 1} more such groups" if len(groups) > 1 else ""
    return [f"this CLIP cannot tell {first} apart (same text features{more}); rename or join these classes"]
