"""How much a file may make us read or hold: what comes from elsewhere is not believed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_cache.errors import UserError

JSON_BYTES = 64 * 2**20
SHARD_IMAGES = NAMES = 2**16
"""The most images of a shard, and the most class names or prompts."""
LABEL = "masks/default/label"
RECIPE = {"unseen", "windows", "threshold", "updates", "backend", "dtype"}
CODECS = {"bytes", "zstd", "crc32c", "sharding_indexed", "vlen-utf8"}
"""Those that our schema uses; none of them runs what it reads."""
TEXT_BYTES = 512
"""What the strings about an image take in memory, about."""


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises ValueError if it is none, or longer than any of ours."""
    if path.stat().st_size > JSON_BYTES:
        raise ValueError(f"longer than {JSON_BYTES // 2**20} MiB")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested beyond reason") from None


def check_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Raise UserError for arrays that no cache of ours has: unknown codecs, wrong shapes, more than memory holds.

    `arrays` are a cache's Zarr arrays by name, among them `cls`, which says how many images a shard has.
    """
    if arrays["cls"].ndim != 3 or arrays[LABEL].ndim != 4:
        raise UserError(f"{path}: has arrays of other dimensions than a cache of ours; it is not trusted")
    images, shard = arrays["cls"].shape[0], arrays["cls"].chunks[0]
    held, rows = images * TEXT_BYTES, 0
    for name, array in arrays.items():
        if unknown := sorted(set(_codecs(array.metadata.to_dict()["codecs"])) - CODECS):
            raise UserError(f"{path / name}: has the codec {unknown[0]}, which no cache of ours has; it is not trusted")
        expected = _shape(name, arrays)
        if array.shape != expected:
            told = f"has the shape {array.shape} instead of {expected}" if expected else "is no array of ours"
            raise UserError(f"{path / name}: {told}; it is not trusted")
        size = array.nbytes if array.dtype.kind in "biuf" else 0
        held += 0 if name.startswith("dense") else size
        rows += 0 if name.startswith("text/") else min(shard, images) * size // max(1, images)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if shard > SHARD_IMAGES:
        raise UserError(f"{path}: says it has {shard} a shard, of at most {SHARD_IMAGES}; it is not trusted")
    if max(held, rows) > memory:
        raise UserError(
            f"{path}: says it holds {images} images, {shard} a shard: {max(held, rows) / 2**30:.0f} GiB in memory, of "
            f"which this machine has {memory / 2**30:.0f}; the metadata is wrong, or needs a larger machine"
        )


def check_attributes(path: Path, attributes: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if a cache, or one of its mask sets, does not tell how it was made."""
    about, recorded = attributes.get("fingerprint"), attributes.get("recorded")
    told = isinstance(about, dict) and isinstance(recorded, dict)
    told = told and all(isinstance(about.get(part), dict) for part in ("clip", "dataset"))
    told = told and all(part in about["clip"] for part in ("model", "image_size", "precision", "weights_sha256"))
    if not (told and "name" in about["dataset"]):
        raise UserError(f"{path}: does not tell how it was made, as every cache of ours does; it is not trusted")
    for name, one in sets.items():
        if not one.keys() >= RECIPE:
            raise UserError(f"{path / 'masks' / name}: does not tell how it was made; it is not trusted")


def _shape(name: str, arrays: Mapping[str, Any]) -> tuple[int, ...] | None:
    """What shape an array of this name has beside the others; None if no cache of ours has such a one."""
    (n, v, c), (h, w) = arrays["cls"].shape, arrays[LABEL].shape[2:]
    shards = -(-n // arrays["cls"].chunks[0])
    known = {f"image/{part}": (n,) for part in ("id", "path", "content_hash", "label_hash", "status")}
    known |= {"image/size": (n, 2), "image/journal": (1,), "view/box": (n, v, 4), "view/flip": (n, v)}
    known |= {"cls": (n, v, c), "journal": (shards,), "dense": (n, v, h, w, c), "dense_scale": (n, v, h, w)}
    kind, _, part = name.partition("/")
    group, _, part = part.partition("/")
    if kind == "masks":
        known |= {f"masks/{group}/label": (n, v, h, w), f"masks/{group}/count": (n, v)}
        known |= {f"masks/{group}/journal": (shards,)}
    if kind == "text":
        classes, templates = (
            min(arrays[key].shape[0], NAMES) if (key := f"text/{group}/{of}") in arrays else 0
            for of in ("name", "template")
        )
        known |= {f"text/{group}/features": (classes, c), f"text/{group}/name": (classes,)}
        known |= {f"text/{group}/template": (templates,), f"text/{group}/journal": (1,)}
    return known.get(name)


def _codecs(codecs: Any) -> list[str]:
    """The names of codecs, those inside a sharding codec included."""
    found = []
    for codec in codecs:
        found.append(codec["name"])
        inside = codec.get("configuration", {})
        found += _codecs([*inside.get("codecs", ()), *inside.get("index_codecs", ())])
    return found
