"""Masks of single centres, as k-means leaves them, beside what they are fused to (the paper's Figure 6)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer

from data_cache.colours import laid_over, paint
from data_cache.datasets.base import VOID
from data_cache.schema import reserved_label
from data_cache.show import fitted, scaled
from data_cache.views import View, replay_label
from experiments.cached_views import CachedViews
from experiments.figures import IGNORED, SIDE, Figure, Row, seen_only, vocabulary
from experiments.verification import rand_index
from pipeline.fusion import fuse
from pipeline.kmeans import Clusters
from pipeline.live import masker_of
from pipeline.masks import Masker

NONE = -1
"""The label of a token that is not ignored: no centre has it."""
COLOURS = 64
"""How many colours there are before they come again, paler."""


def masks_figure(views: CachedViews, places: Sequence[int], side: int = SIDE) -> Figure:
    """Photograph, seen labels, masks of single centres at each scale, and fused masks of some cached images.

    A cache keeps fused masks alone: single centres are clustered again from its dense tokens, as `cluster` does.
    Without tokens there are no such columns, and a note says so.

    Raises UserError for an image that failed or changed, or damaged tokens.
    """
    masker = masker_of(views.cache, views.cache.mask_attributes(views.masks), views.images.classes)
    first = len(views.images.classes) % COLOURS
    rows, maps, alike = [], [], []
    reserved = reserved_label(masker.dtype)
    for index in places:
        geometry, _, image, label = views.look(index)
        known, size = seen_only(label, masker.split), fitted(*label.shape, side)
        photograph = scaled(image, size)
        panels, caption = [photograph, paint(known, VOID, size)], f"{views.images.ids[index]}: "
        fused, count = views.fused(index)
        maps.append(known)
        if views.cache.layout.dense != "none":
            clusters, again = clustered(views, masker, index, geometry)
            alike.append(rand_index(fused[fused != reserved], again[fused != reserved]))
            panels += [laid_over(one, NONE, photograph) for one in single(clusters, masker.windows, first)]
            caption += " + ".join(str((clusters.scale == n).sum()) for n in range(len(masker.windows))) + " centres, "
        panels.append(laid_over(pseudo(fused, first), NONE, photograph))
        rows.append(Row(f"{caption}{count} fused mask{'' if count == 1 else 's'}", tuple(panels)))
    names, unseen = vocabulary(masker.split, maps)
    scales = tuple(f"centres, windows of {window}" for window in masker.windows) if alike else ()
    titles = ("image", "seen labels", *scales, "fused masks")
    notes = ("colours of centres and masks stand for nothing else; tokens that are not ignored have none",)
    return Figure(titles, rows, names, unseen, IGNORED, notes, _warnings(views.cache.layout.dense, alike))


def clustered(
    views: CachedViews, masker: Masker, index: int, geometry: View
) -> tuple[Clusters, Integer[np.ndarray, "y x"]]:
    """Single centres of a cached view, clustered again from its tokens, and what they are fused to."""
    dense, whole = views.cache.dense(index)[views.view], views.images.label(index)
    size = views.cache.fingerprint["clip"]["image_size"]
    clusters = masker.clusters(dense, None if whole is None else replay_label(whole, geometry, size))
    return clusters, masker.stored(fuse(clusters, dense, masker.threshold)[None])[0][0]


def single(clusters: Clusters, windows: Sequence[int], first: int) -> list[Int[np.ndarray, "y x"]]:
    """Each token's centre as a label from `first` on, a map a scale; NONE where it has none."""
    maps = []
    for scale in range(len(windows)):
        masks = clusters.masks[clusters.scale == scale]
        number = np.arange(first, first + len(masks))[:, None, None]
        maps.append(np.where(masks, number, NONE).max(axis=0, initial=NONE))
    return maps


def pseudo(stored: Integer[np.ndarray, "y x"], first: int) -> Int[np.ndarray, "y x"]:
    """Stored mask labels from `first` on, as they are no classes; NONE where they are the reserved one."""
    return np.where(stored == reserved_label(stored.dtype.name), NONE, stored.astype(int) + first)


def _warnings(dense: str, alike: Sequence[float]) -> tuple[str, ...]:
    if not alike:
        return ("no masks of single centres: this cache holds no dense tokens (`precompute --dense float16`)",)
    if min(alike) == 1:
        return ()
    cause = "; tokens are cached in 8 bits, and masks were made before" if dense == "int8" else ""
    return (
        f"fused again, these centres give other masks than the stored ones (adjusted Rand index {min(alike):.2f} at "
        f"the least{cause})",
    )
