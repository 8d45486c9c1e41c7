"""A summary of a cache: content, progress, mask sets, and bytes on disk."""

from typing import Any

from data_cache.arrays import PAYLOADS, is_dense
from data_cache.content import OK
from data_cache.reader import Cache
from data_cache.system.files import read_errors


def describe(cache: Cache) -> dict[str, Any]:
    """Content, progress, failures, mask sets, and bytes on disk.

    `done` and `failed` count images; they add up to `images` once all shards are finished.
    """
    records, clip, dataset = cache.records(), cache.fingerprint["clip"], cache.fingerprint["dataset"]
    return {
        "path": str(cache.path),
        "dataset": f"{dataset['name']} {dataset['split']}",
        "images": cache.layout.images,
        "views": cache.layout.views,
        "shards": cache.layout.shards,
        "shards_done": len(records),
        "done": sum(record.ok for record in records),
        "failed": sum(record.failed for record in records),
        "clip": f"{clip['model']} {clip['image_size']} px {clip['precision']}",
        "weights_sha256": clip["weights_sha256"],
        "masks": cache.masks,
        "mask_sets": {name: _mask_set(cache, name) for name in cache.masks},
        "unseen": {name: cache.mask_attributes(name)["unseen"] for name in cache.masks},
        "bytes": bytes_on_disk(cache),
        "failures": {name: status for name, status in cache.statuses() if status not in (OK, "")},
    }


def bytes_on_disk(cache: Cache) -> dict[str, int]:
    """Bytes on disk of each payload; of masks, all mask sets with their counts and journals."""
    sizes = dict.fromkeys(PAYLOADS, 0)
    with read_errors(cache.path):
        for folder in (cache.path / name for name in ("cls", "dense", "dense_scale", "masks")):
            for file in (file for file in folder.rglob("*") if file.is_file()):
                name = file.relative_to(cache.path).as_posix()
                sizes["dense" if is_dense(name) else folder.name] += file.stat().st_size
    return sizes


def _mask_set(cache: Cache, name: str) -> dict[str, Any]:
    """The model whose tokens a mask set is clustered from, its grid, how its tokens are stored, and its progress."""
    return {
        "model": cache.tokens_model(name).get("name", "CLIP"),
        "grid": list(cache.mask_layout(name).grid),
        "dense": cache.dense_stored(name),
        "shards_pending": len(cache.pending_shards(name)),
    }
