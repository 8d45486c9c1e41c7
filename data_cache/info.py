"""A summary of a cache, for people and for scripts."""

from typing import Any

from data_cache.content import OK
from data_cache.store import Cache


def describe(cache: Cache) -> dict[str, Any]:
    """What a cache holds, how far it is, what failed, and its bytes on disk.

    `done` and `failed` count images; both are short of `images` while shards are unfinished.
    """
    layout, records, fingerprint = cache.layout, cache.records(), cache.fingerprint
    clip, dataset = fingerprint["clip"], fingerprint["dataset"]
    return {
        "path": str(cache.path),
        "dataset": f"{dataset['name']} {dataset['split']}",
        "images": layout.images,
        "views": layout.views,
        "shards": layout.shards,
        "shards_done": len(records),
        "done": sum(record.ok for record in records),
        "failed": sum(record.failed for record in records),
        "clip": f"{clip['model']} {clip['image_size']} px {clip['precision']}",
        "weights_sha256": clip["weights_sha256"],
        "masks": cache.masks,
        "unseen": {name: cache.mask_attributes(name)["unseen"] for name in cache.masks},
        "bytes": cache.bytes(),
        "failures": {name: status for name, status in cache.statuses() if status not in (OK, "")},
    }
