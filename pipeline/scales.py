"""The masks of each scale before they are fused: a cache does not hold them, but the tokens they are made of."""

import numpy as np
from jaxtyping import Bool, Int

from data_cache.record import ImageRecord
from pipeline.fusion import NOT_IGNORED
from pipeline.kmeans import Clusters, assign_faiss, cluster


def clusters_of(record: ImageRecord) -> Clusters:
    """Cluster a view's cached tokens anew with the windows and updates of its mask set (eq. 4-5).

    Without its label map: the tokens that have a fused label are those that were ignored. From float16 tokens the
    clusters are those of stage 1, from int8 ones nearly so. Raises UserError if the view has no dense tokens.
    """
    about = record.reader.about
    ignored = record.masks != record.nothing
    return cluster(record.dense, ignored, assign_faiss, tuple(about["windows"]), about["updates"])


def scale_maps(record: ImageRecord) -> dict[str, Int[np.ndarray, "y x"]]:
    """One label map a window size by its title, for `open_cache(panels=scale_maps)`; -1 where not ignored."""
    clusters = clusters_of(record)
    maps = {}
    for place, window in enumerate(record.reader.about["windows"]):
        masks = clusters.masks[clusters.scale == place]
        maps[f"{window} x {window} windows: {len(masks)}"] = label_map(masks)
    return maps


def label_map(masks: Bool[np.ndarray, "mask y x"]) -> Int[np.ndarray, "y x"]:
    """Disjoint masks as one map of their numbers; -1 where there is none."""
    label = np.full(masks.shape[1:], NOT_IGNORED)
    for number, mask in enumerate(masks):
        label[mask] = number
    return label
