"""The content of a cache as arrays in memory: a shard, the text features, and the arrays that training needs."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, Shaped

from data_cache.arrays import DENSE_TOKENS, SHARD_FIELDS, blank_fields
from data_cache.layout import Layout
from data_cache.messages import first_names

COSINE_TOLERANCE = 1e-3
"""Features with a cosine within this distance of 1 are the same: at temperature 0.07, the logits of a pixel that
differ by their distance of 0.045 differ by at most 0.64."""
BLOCK = 512
"""Names compared with all others at a time."""
COMPONENTS = 32
"""Principal components in which features are compared first."""
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
        return text_problems(self.classes, self.features)


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


def text_problems(
    names: Sequence[str], features: Float[np.ndarray, "class channel"], unknown: Sequence[str] = ()
) -> list[str]:
    """What is wrong with the text features of class names: one sentence per problem, and what to do about it.

    Args:
        names: the class names.
        features: their text features.
        unknown: names with words that CLIP never learned (`pipeline.teacher.protocol.Teacher.unknown_names`).

    """
    problems = []
    if unknown:
        shown = first_names([f"'{name[:40]}'" for name in unknown], 5)
        problems.append(f"this CLIP never learned the words of {shown}; use words that it knows, or another --clip")
    groups = [group for group in indistinguishable_classes(names, features) if not {*group} <= {*unknown}]
    if groups:
        shown = "; ".join(" and ".join(f"'{name[:40]}'" for name in group[:4]) for group in groups[:3])
        more = f"; and {len(groups) - 3} more such groups" if len(groups) > 3 else ""
        problems.append(
            f"this CLIP cannot tell these classes apart, because their text features are the same: {shown}{more}; "
            "rename or merge them"
        )
    return problems


def indistinguishable_classes(
    names: Sequence[str], features: Float[np.ndarray, "class channel"]
) -> list[tuple[str, ...]]:
    """Groups of names whose features have a cosine above 1 - COSINE_TOLERANCE, each in the order of the names.

    A name joins the group of the first name that it is equal to. A list may have 65,535 names, so features are first
    compared in their principal components, in which no distance is greater than it is in all channels: the first name
    that is near enough there is the answer if it really is, and only otherwise are all channels compared.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = (features / np.maximum(norms, 1e-30)).astype(np.float32)
    key, query = _distance_factors(unit)
    groups: dict[int, list[str]] = {}
    leader: list[int] = []
    for start in range(0, len(unit), BLOCK):
        end = start + BLOCK
        own = unit[start:end]
        # the first True of a row is the first name near it, at the latest the name itself
        first = (query[start:end] @ key[:end].T > -1.01 * COSINE_TOLERANCE).argmax(axis=1)
        (other,) = np.nonzero(np.einsum("nc,nc->n", own, unit[first]) <= 1 - COSINE_TOLERANCE)
        if other.size:
            first[other] = (own[other] @ unit[:end].T > 1 - COSINE_TOLERANCE).argmax(axis=1)
        for row, equal in enumerate(first.tolist(), start):
            leader.append(leader[equal] if equal < row else row)
            groups.setdefault(leader[row], []).append(names[row])
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _distance_factors(
    unit: Float[np.ndarray, "class channel"],
) -> tuple[Float[np.ndarray, "class factor"], Float[np.ndarray, "class factor"]]:
    """Two matrices; the products of their rows are minus half the squared distances in the principal components."""
    centered = unit - unit.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    points = centered @ axes[:, -COMPONENTS:]
    half, one = (points**2).sum(axis=1, keepdims=True) / 2, np.ones((len(points), 1), np.float32)
    return np.hstack([points, -half, one]), np.hstack([points, one, -half])
