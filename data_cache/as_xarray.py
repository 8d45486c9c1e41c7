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
"""Arrays of groups below the root that become variables, by path; strings come as coordinates or not at all."""
EDGES = ["top", "left", "bottom", "right"]


def arrays(cache: Cache, masks: str, chunks: Any = None) -> xarray.Dataset:
    """Features, texts and one mask set; arrays are read on first use.

    `chunks` is what `xarray.open_zarr` takes: None for plain arrays, {} for Dask arrays in the cache's own chunks.
    The attributes name the mask set and its reserved label. int8 tokens are as stored: multiply by `dense_scale`.

    Raises UserError if files of the cache are missing, which xarray would read as zeros.
    """
    cache.check_files(masks)
    status, counted, texts = cache.statuses(), cache.label_counts(masks), cache.texts()
    tree = xarray.open_datatree(cache.path, engine="zarr", chunks=chunks)
    root, clustered = tree.to_dataset().drop_vars("journal"), tree[f"masks/{masks}"].to_dataset()
    about = cache.mask_attributes(masks)
    split = Split(texts.classes, tuple(about["unseen"]))
    features = root.assign({name: tree[key] for key, name in FEATURES.items()}).assign(
        masks=clustered["label"],
        count=(("image", "view"), counted),
        text=(("class", "channel"), texts.features),
        seen=("class", split.is_seen),
        status=("image", [reason for _, reason in status]),
    )
    coordinates = {
        "image": [name for name, _ in status],
        "view": range(cache.layout.views),
        "class": list(texts.classes),
        "height_width": ["height", "width"],
        "top_left_bottom_right": EDGES,
    }
    settings = {name: about[name] for name in ("windows", "threshold", "updates")}
    return (
        features.assign_coords(coordinates)
        .drop_attrs()
        .assign_attrs(masks=masks, reserved=reserved_label(about["dtype"]), **settings)
    )
