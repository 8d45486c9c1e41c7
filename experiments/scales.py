"""The masks of each scale before fusion, clustered from cached tokens: a cache stores fused masks only."""

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

    No label map is needed: the tokens that have a fused label are those that were ignored. From float16 tokens the
    clusters are those of stage 1, from int8 ones nearly so. Raises UserError if the view has no dense tokens.
    """
    about = view.mask_set.settings
    ignored = view.masks != view.reserved
    return cluster(view.dense, ignored, assign_faiss, tuple(about["windows"]), about["updates"])


def scale_maps(view: CachedView, clusters: Clusters | None = None) -> list[ScaleMap]:
    """The masks of each window size, from `clusters` if they are known. Raises UserError as `clusters_of` does."""
    clusters = clusters or clusters_of(view)
    masks = [clusters.masks[clusters.scale == scale] for scale in range(len(view.mask_set.settings["windows"]))]
    return [ScaleMap(w, len(m), label_map(m)) for w, m in zip(view.mask_set.settings["windows"], masks, strict=True)]


def label_map(masks: Bool[np.ndarray, "mask y x"]) -> Int[np.ndarray, "y x"]:
    """Disjoint masks as one map of their numbers; -1 where there is no mask."""
    label = np.full(masks.shape[1:], NOT_IGNORED)
    for number, mask in enumerate(masks):
        label[mask] = number
    return label


def scales_figure(view: CachedView) -> Figure:
    """`view_figure` with the masks of each scale, or with a note if the view has no dense tokens."""
    try:
        return view_figure(view, scale_maps(view))
    except UserError as error:
        return view_figure(view, notes=[str(error)])


def masks_figure(views: Sequence[CachedView], side: int = SIDE) -> Figure:
    """The paper's Figure 6 of some views of a mask set; without dense tokens it lacks the single centres, and says so.

    Raises UserError for an image that failed or changed, or damaged tokens.
    """
    mask_set = views[0].mask_set
    if mask_set.cache.layout.dense == "none":
        lacking = "no masks of single centres: this cache holds no dense tokens (`precompute --dense float16`)"
        return paper_figures.masks_figure(views, [[] for _ in views], (lacking,), side)
    scales, agreement = [], []
    for view in views:
        clusters, ignored = clusters_of(view), view.masks != view.reserved
        fused = fuse(clusters, view.dense, mask_set.settings["threshold"])
        scales.append(scale_maps(view, clusters))
        agreement.append(adjusted_rand_index(view.masks[ignored], fused[ignored]))
    if min(agreement) == 1:
        return paper_figures.masks_figure(views, scales, side=side)
    int8 = mask_set.cache.layout.dense == "int8"
    cause = "; tokens are stored in 8 bits, and the masks were made from float16" if int8 else ""
    warning = (
        "fused again, these centres do not give the stored masks (lowest adjusted Rand index "
        f"{min(agreement):.2f}{cause})"
    )
    return paper_figures.masks_figure(views, scales, (warning,), side)
