"""How well pseudo labels agree with true regions: purity, best-overlap IoU, boundary recall, clusters per region.

All are sums over tokens and pixels, so that images can be added. `docs/quality.md` defines each measure.
"""

from dataclasses import astuple, dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

from data_cache.datasets.base import VOID

NO_CLASS = -1


@dataclass(frozen=True)
class RegionScores:
    """Sums over images. A region is all pixels of a class in an image; it counts from the size of one token on."""

    pixels: int = 0
    """Measured pixels that have a pseudo label."""
    majority_pixels: int = 0
    """Those of the most frequent class of their pseudo label."""
    regions: int = 0
    iou: float = 0.0
    """Sum over regions of the largest IoU of any pseudo label."""
    clusters: int = 0
    """Sum over regions of the pseudo labels of which the region covers at least half."""
    boundary_tokens: int = 0
    found_tokens: int = 0
    """Boundary tokens near a boundary between pseudo labels."""

    def __add__(self, other: "RegionScores") -> "RegionScores":
        return RegionScores(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    @property
    def measures(self) -> dict[str, float | None]:
        """The measures by their names in JSON; None where there is nothing to measure."""
        return {
            "purity": _ratio(self.majority_pixels, self.pixels),
            "best_iou": _ratio(self.iou, self.regions),
            "boundary_recall": _ratio(self.found_tokens, self.boundary_tokens),
            "clusters": _ratio(self.clusters, self.regions),
            "regions": self.regions,
        }


def class_counts(
    label: UInt8[np.ndarray, "height width"], grid: tuple[int, int], classes: int
) -> Int[np.ndarray, "y x class"]:
    """Pixels of each class in each token's patch, without void. Height and width are multiples of the grid's."""
    rows, columns = (np.arange(side) * cells // side for side, cells in zip(label.shape, grid, strict=True))
    token = rows[:, None] * grid[1] + columns
    known = label != VOID
    pairs = token[known] * classes + label[known]
    return np.bincount(pairs, minlength=grid[0] * grid[1] * classes).reshape(*grid, classes)


def token_classes(counts: Int[np.ndarray, "y x class"], patch: int) -> Int[np.ndarray, "y x"]:
    """The class of each token: the most frequent one if it covers half of the `patch` pixels, else NO_CLASS."""
    return np.where(2 * counts.max(axis=2) >= patch, counts.argmax(axis=2), NO_CLASS)


def region_scores(
    masks: Integer[np.ndarray, "y x"],
    reserved: int,
    counts: Int[np.ndarray, "y x class"],
    carried: Int[np.ndarray, "y x"],
    patch: int,
    tolerance: int = 1,
) -> RegionScores:
    """Compare the pseudo labels of one image with its true regions.

    Args:
        masks: pseudo label of each token, `reserved` for those without one.
        reserved: see `masks`.
        counts: pixels of each class in each token; zero for classes that are not measured.
        carried: pixels in each token that carry its pseudo label, because they have no label: those of `counts`, void,
            and hidden classes that are not measured.
        patch: pixels of a token. Smaller regions are not counted.
        tolerance: distance in tokens up to which a boundary counts as found.

    """
    clustered = masks != reserved
    labels, index = np.unique(masks[clustered], return_inverse=True)
    overlap = np.zeros((len(labels), counts.shape[2]), np.int64)
    np.add.at(overlap, index, counts[clustered])
    sizes = np.bincount(index, carried[clustered], len(labels)).astype(np.int64)
    regions = np.flatnonzero(counts.sum(axis=(0, 1)) >= patch)
    truth = counts.sum(axis=(0, 1))[regions]
    union = np.maximum(sizes[:, None] + truth - overlap[:, regions], 1)
    # of a label without any pixel, which only covers pixels that have a label, no class has the majority
    majority = overlap.argmax(axis=1)[(2 * overlap.max(axis=1, initial=0) >= sizes) & (sizes > 0)]
    true_boundary = _boundary(np.where(clustered, token_classes(counts, patch), NO_CLASS), NO_CLASS)
    found = true_boundary & _dilated(_boundary(masks, reserved), tolerance)
    return RegionScores(
        pixels=int(overlap.sum()),
        majority_pixels=int(overlap.max(axis=1, initial=0).sum()),
        regions=len(regions),
        iou=float((overlap[:, regions] / union).max(axis=0, initial=0).sum()),
        clusters=int(np.isin(majority, regions).sum()),
        boundary_tokens=int(true_boundary.sum()),
        found_tokens=int(found.sum()),
    )


@dataclass(frozen=True)
class TokenScores:
    """Tokens that have a class, and those whose dense token is most similar to the text feature of that class."""

    tokens: int = 0
    correct: int = 0

    def __add__(self, other: "TokenScores") -> "TokenScores":
        return TokenScores(self.tokens + other.tokens, self.correct + other.correct)

    @property
    def accuracy(self) -> float | None:
        """The fraction of correct tokens; None if there is no token."""
        return _ratio(self.correct, self.tokens)


def nearest_text(
    dense: Float[np.ndarray, "y x channel"], text: Float[np.ndarray, "class channel"]
) -> Int[np.ndarray, "y x"]:
    """The class whose text feature has the largest cosine similarity to each dense token."""
    # the length of a token does not change which class is nearest
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    return (dense.astype(np.float32) @ unit.T.astype(np.float32)).argmax(axis=2)


def token_scores(
    predicted: Int[np.ndarray, "y x"], true: Int[np.ndarray, "y x"], among: Int[np.ndarray, "class"]
) -> TokenScores:
    """How many tokens of the classes `among` are predicted correctly. `true` is NO_CLASS for tokens without a class."""
    measured = np.isin(true, among)
    return TokenScores(int(measured.sum()), int((measured & (predicted == true)).sum()))


def _boundary(label: Integer[np.ndarray, "y x"], none: int) -> Bool[np.ndarray, "y x"]:
    """Tokens with a token of another label above, below, left or right of them; both must have a label."""
    boundary = np.zeros(label.shape, bool)
    for one, other in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
        differ = (label[one] != label[other]) & (label[one] != none) & (label[other] != none)
        boundary[one] |= differ
        boundary[other] |= differ
    return boundary


def _dilated(where: Bool[np.ndarray, "y x"], distance: int) -> Bool[np.ndarray, "y x"]:
    """The tokens at most `distance` rows and columns away from a marked one."""
    padded = np.pad(where, distance)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * distance + 1, 2 * distance + 1))
    return windows.any(axis=(2, 3))


def _ratio(part: float, whole: int) -> float | None:
    return part / whole if whole else None
