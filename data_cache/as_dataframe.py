"""The views of a cache as a pandas table."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas

from data_cache.as_xarray import EDGES
from data_cache.layout import reserved_label
from data_cache.mask_set import MaskSet

NUMBERS = {
    **{"height": "Int32", "width": "Int32", "has_label": "boolean"},
    **dict.fromkeys(EDGES, "Int32"),
    **{"mirrored": "boolean", "pseudo_labels": "Int32", "ignored": "Float64", "cls_norm": "Float64"},
}
"""The columns that only images have that are done and did not fail, with their types."""


def dataframe(mask_set: MaskSet) -> pandas.DataFrame:
    """One row per view. The arrays are read shard by shard.

    Columns: `image` (its index), `view`, `id`, `path` (of the file; missing for a synthetic dataset), `status` ("ok",
    "not done", or why the image failed), and for images whose status is "ok" in a finished shard:

    - `height` and `width` of the image in pixels, and `has_label`: whether it has a label map,
    - the box of the view in pixels (`top`, `left`, `bottom`, `right`), and whether the view is `mirrored`,
    - `pseudo_labels`: their number; `ignored`: the share of ignored tokens, 0 to 1; `cls_norm`: L2 norm of CLS.

    Raises UserError if a file of the cache is missing or damaged.
    """
    layout, root = mask_set.cache.layout, mask_set.source.root
    images = np.repeat(np.arange(layout.images), layout.views)
    paths = [None if root is None else str(Path(root, name)) for name in mask_set.ids]
    statuses = [status or "not done" for _, status in mask_set.statuses]
    columns: dict[str, Any] = {"image": images, "view": np.tile(np.arange(layout.views), layout.images)}
    for name, values in (("id", mask_set.ids), ("path", paths), ("status", statuses)):
        columns[name] = pandas.array(values, dtype="str").take(images)
    known, numbers = _numbers(mask_set)
    for name, dtype in NUMBERS.items():
        columns[name] = pandas.array(numbers[name].ravel(), dtype=dtype)
        columns[name][~known.ravel()] = pandas.NA
    return pandas.DataFrame(columns)


def _numbers(mask_set: MaskSet) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Which views have numbers (image, view), and the numbers by column (image, view)."""
    cache, masks = mask_set.cache, mask_set.masks
    layout, reserved = cache.layout, reserved_label(mask_set.settings["dtype"])
    shape = (layout.images, layout.views)
    known, numbers = np.zeros(shape, bool), {name: np.zeros(shape) for name in NUMBERS}
    pending = set(cache.pending_shards(masks))
    for shard in (shard for shard in range(layout.shards) if shard not in pending):
        span, loaded = layout.span(shard), cache.load(masks, shard)
        known[span] = loaded.ok[:, None]
        columns = {
            **dict(zip(("height", "width"), cache.read("image/size", span).T[..., None], strict=True)),
            "has_label": np.array([[label != ""] for _, label in loaded.digest]),
            **dict(zip(EDGES, np.moveaxis(loaded.box, 2, 0), strict=True)),
            "mirrored": loaded.flip,
            "pseudo_labels": loaded.count,
            "ignored": (loaded.label != reserved).mean(axis=(2, 3)),
            "cls_norm": np.linalg.norm(loaded.cls.astype(np.float32), axis=2),
        }
        for name, values in columns.items():
            numbers[name][span] = values
    return known, numbers
