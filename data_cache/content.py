"""What a cache holds, as arrays in memory: one shard of it, its text features, and what training needs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, Shaped

OK = "ok"
"""The status of an image that worked; any other is the reason why it did not."""


@dataclass(frozen=True)
class Texts:
    """Text features of a class list: one L2-normalised row a class, and the prompts they were made from."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    features: Float[np.ndarray, "class channel"]


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
