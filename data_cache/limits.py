"""How much a file may make us read or hold: what comes from elsewhere is not believed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_cache.errors import UserError

JSON_BYTES = 64 * 2**20
SHARD_IMAGES = 2**16
CODECS = {"bytes", "zstd", "crc32c", "sharding_indexed", "vlen-utf8"}
"""Those that our schema uses; none of them runs what it reads."""
TEXT_BYTES = 512
"""What the strings about an image take in memory, about."""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError if it is none, or longer than any of ours."""
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"longer than {JSON_BYTES // 2**20} MiB")
    return json.loads(path.read_bytes())


def check_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Raise UserError for arrays that no cache of ours has: unknown codecs, wrong shapes, more than memory holds.

    `arrays` are a cache's Zarr arrays by name, among them `cls`, which says how many images a shard has.
    """
    images, shard = arrays["cls"].shape[0], arrays["cls"].chunks[0]
    held, rows = images * TEXT_BYTES, 0
    for name, array in arrays.items():
        if unknown := sorted(set(_codecs(array.metadata.to_dict()["codecs"])) - CODECS):
            raise UserError(f"{path / name}: has the codec {unknown[0]}, which no cache of ours has; it is not trusted")
        if name.startswith("text/") or name == "image/journal":
            continue
        entries = -(-images // shard) if name.endswith("journal") else images
        if array.shape[0] != entries:
            raise UserError(f"{path / name}: has {array.shape[0]} entries instead of {entries}; it is not trusted")
        size = array.nbytes if array.dtype.kind in "biuf" else 0
        held += 0 if name.startswith("dense") else size
        rows += min(shard, images) * size // max(1, images)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if shard > SHARD_IMAGES or max(held, rows) > memory:
        raise UserError(
            f"{path}: says it holds {images} images, {shard} a shard: {max(held, rows) / 2**30:.0f} GiB in memory, of "
            f"which this machine has {memory / 2**30:.0f}; the metadata is wrong, or needs a larger machine"
        )


def _codecs(codecs: Any) -> list[str]:
    """The names of codecs, those inside a sharding codec included."""
    found = []
    for codec in codecs:
        found.append(codec["name"])
        inside = codec.get("configuration", {})
        found += _codecs([*inside.get("codecs", ()), *inside.get("index_codecs", ())])
    return found
