"""The arrays of a cache as one xarray dataset, with the names of images and classes as coordinates."""

from typing import Any

import xarray

from data_cache.arrays import SHARD_FIELDS
from data_cache.layout import reserved_label
from data_cache.reader import Cache
from data_cache.splits import Split

FEATURES = {
    spec.name: spec.field
    for spec in SHARD_FIELDS.values()
    if spec.name.startswith(("image/", "view/")) and spec.dtype != "string"
}
"""Arrays in groups below the root that become variables, by path; strings become coordinates or are left out."""
EDGES = ["top", "left", "bottom", "right"]


def arrays(cache: Cache, masks: str, chunks: Any = None) -> xarray.Dataset:
    """Features, texts and one mask set; arrays are read on first use.

    `chunks` is passed to xarray: None for plain arrays, {} for Dask arrays with the cache's own chunks. The attributes
    name the mask set and its reserved label. int8 tokens are returned as stored: multiply them by `dense_scale`.

    Raises UserError if files of the cache are missing, which xarray would read as zeros.
    """
    cache.check_files(masks)
    statuses, counts, texts = cache.statuses(), cache.label_counts(masks), cache.texts()
    tree = xarray.open_datatree(cache.path, engine="zarr", chunks=chunks)
    attributes = cache.mask_attributes(masks)
    split = Split(texts.classes, tuple(attributes["unseen"]))
    features = tree.to_dataset().drop_vars("journal").assign({name: tree[key] for key, name in FEATURES.items()})
    features = features.assign(
        masks=tree[f"masks/{masks}"].to_dataset()["label"],
        count=(("image", "view"), counts),
        text=(("class", "channel"), texts.features),
        seen=("class", split.is_seen),
        status=("image", [status for _, status in statuses]),
    )
    coordinates = {
        "image": [name for name, _ in statuses],
        "view": range(cache.layout.views),
        "class": list(texts.classes),
        "height_width": ["height", "width"],
        "top_left_bottom_right": EDGES,
    }
    settings = {name: attributes[name] for name in ("windows", "threshold", "updates")}
    return (
        features.assign_coords(coordinates)
        .drop_attrs()
        .assign_attrs(masks=masks, reserved=reserved_label(attributes["dtype"]), **settings)
    )
