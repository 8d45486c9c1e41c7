"""The masks of each scale before fusion, recomputed from cached tokens, since a cache stores only fused masks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from data_cache.cached_view import CachedView
from data_cache.errors import UserError
from pipeline.masks.fusion import adjusted_rand_index, fuse
from pipeline.masks.kmeans import Clusters, assign_faiss, cluster
from viewer import paper_figures
from viewer.figure import Figure
from viewer.paper_figures import SIDE
from viewer.view_figure import NOT_IGNORED, ScaleMap, view_figure


def clusters_of(view: CachedView) -> Clusters:
    """Cluster a view's cached tokens with the windows and updates of its mask set (eq. 4-5).

    No label map is needed, because the ignored tokens are those that have a fused label. Clusters of float16 tokens
    equal those of stage 1; clusters of int8 tokens nearly do. Raises UserError if the view has no dense tokens.
    """
    recipe, ignored = view.mask_set.settings, view.masks != view.reserved
    return cluster(view.dense, ignored, assign_faiss, tuple(recipe["windows"]), recipe["updates"])


def scale_maps(view: CachedView, clusters: Clusters | None = None) -> list[ScaleMap]:
    """The masks of each window size, from `clusters` if given. Raises UserError as `clusters_of` does."""
    clusters = clusters or clusters_of(view)
    maps = []
    for scale, window in enumerate(view.mask_set.settings["windows"]):
        masks = clusters.masks[clusters.scale == scale]
        maps.append(ScaleMap(window, len(masks), label_map(masks)))
    return maps


def label_map(masks: Bool[np.ndarray, "mask y x"]) -> Int[np.ndarray, "y x"]:
    """Disjoint masks as one map of their indices; NOT_IGNORED where there is no mask."""
    label = np.full(masks.shape[1:], NOT_IGNORED)
    for index, mask in enumerate(masks):
        label[mask] = index
    return label


def scales_figure(view: CachedView) -> Figure:
    """`view_figure` with the masks of each scale, or with a note if the view has no dense tokens."""
    try:
        return view_figure(view, scale_maps(view))
    except UserError as error:
        return view_figure(view, notes=[str(error)])


def masks_figure(views: Sequence[CachedView], side: int = SIDE) -> Figure:
    """The paper's Figure 6 for views of one mask set. Without dense tokens it omits single centers, with a warning.

    Raises UserError if an image failed or has changed, or tokens are damaged.
    """
    mask_set = views[0].mask_set
    stored = mask_set.cache.dense_stored(mask_set.masks)
    if stored == "none":
        flag = "--masks-dense" if mask_set.cache.tokens_part(mask_set.masks) else "--dense"
        warning = f"no masks of single centers: their dense tokens are not stored (`precompute {flag} float16`)"
        return paper_figures.masks_figure(views, [[] for _ in views], (warning,), side)
    scales, agreement = [], []
    for view in views:
        clusters, ignored = clusters_of(view), view.masks != view.reserved
        fused = fuse(clusters, view.dense, mask_set.settings["threshold"])
        scales.append(scale_maps(view, clusters))
        agreement.append(adjusted_rand_index(view.masks[ignored], fused[ignored]))
    if min(agreement) == 1:
        return paper_figures.masks_figure(views, scales, side=side)
    cause = "; tokens are stored in 8 bits, but the masks were computed from float16" if stored == "int8" else ""
    warning = f"these centers do not fuse to the stored masks (lowest adjusted Rand index {min(agreement):.2f}{cause})"
    return paper_figures.masks_figure(views, scales, (warning,), side)
