"""The arrays of a cache as one xarray dataset, with the names of images and classes as coordinates."""

from typing import Any

import xarray

from data_cache.schema import reserved_label
from data_cache.splits import Split
from data_cache.store import Cache

FEATURES = {"image/size": "size", "view/box": "box", "view/flip": "flip"}
EDGES = ["top", "left", "bottom", "right"]


def arrays(cache: Cache, masks: str, chunks: Any = None) -> xarray.Dataset:
    """Features, texts and one mask set; nothing is read before it is asked for.

    `chunks` is what `xarray.open_zarr` takes: None for plain arrays, {} for Dask arrays in the cache's own chunks.
    Attributes tell which mask set it is and its reserved label. int8 tokens come as stored: times `dense_scale`.

    Raises UserError if files of the cache are lost, which xarray would read as zeros.
    """
    cache.require_files(masks)
    status, counted, texts = cache.statuses(), cache.counts(masks), cache.texts()
    tree = xarray.open_datatree(cache.path, engine="zarr", chunks=chunks)
    root, clustered = tree.to_dataset().drop_vars("journal"), tree[f"masks/{masks}"].to_dataset()
    about = cache.mask_attributes(masks)
    split = Split(texts.classes, tuple(about["unseen"]))
    found = root.assign({name: tree[key] for key, name in FEATURES.items()}).assign(
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
    nothing = reserved_label(about["dtype"])
    told = {name: about[name] for name in ("windows", "threshold", "updates")}
    return found.assign_coords(coordinates).drop_attrs().assign_attrs(masks=masks, nothing=nothing, **told)
