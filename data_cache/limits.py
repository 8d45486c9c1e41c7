"""Checks of metadata from untrusted sources: known arrays and codecs only, and no more than memory can hold."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG
from typing import Any

from data_cache.arrays import find_spec, is_dense, symbol_sizes
from data_cache.errors import UserError
from data_cache.layout import DEFAULT_MASKS, DENSE, Layout

JSON_BYTES = 64 * 2**20
SHARD_IMAGES = NAMES = 2**16
"""The maximum number of images per shard, and of class names or prompts."""
MASK_SETTINGS = {"unseen", "windows", "threshold", "updates", "backend", "dtype"}
MODEL = {"name", "weights_sha256", "image_size", "mean", "std", "precision"}
"""What a mask set records about a model that is not CLIP."""
CODECS = {"bytes", "zstd", "crc32c", "sharding_indexed", "vlen-utf8"}
"""The codecs that caches use; none of them executes what it reads."""
TEXT_BYTES = 512
"""Approximate memory of the strings of one image."""


def machine_memory() -> int:
    """The physical memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_json(path: Path, limit: int = JSON_BYTES) -> Any:
    """The content of a JSON file. Raises ValueError if it is not JSON or larger than `limit` bytes, and OSError."""
    status = path.stat()
    if not S_ISREG(status.st_mode):  # opening a named pipe would block
        raise ValueError("is not a file")
    if status.st_size > limit:
        raise ValueError(f"larger than {limit // 2**20} MiB")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def check_arrays(path: Path, arrays: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError for unknown arrays or codecs, shapes that disagree, or more data than memory can hold.

    `arrays` are the Zarr arrays of a cache by path, which include `cls` and the labels of the default masks; `sets`
    are the attributes of its mask sets.
    """
    if arrays["cls"].ndim != 3 or arrays[f"masks/{DEFAULT_MASKS}/label"].ndim != 4:
        raise UserError(f"{path}: its arrays do not have the dimensions of a cache; it is not trusted")
    layout = Layout.of(arrays)
    for name, settings in sets.items():
        _check_tokens(path / "masks" / name, name, settings, sets)
    images, shard = layout.images, layout.shard
    cache_bytes, shard_bytes = images * TEXT_BYTES, 0
    for name, array in arrays.items():
        if unknown := sorted(set(_codecs(array.metadata.to_dict()["codecs"])) - CODECS):
            raise UserError(f"{path / name}: has the codec {unknown[0]}, which no cache uses; it is not trusted")
        expected = _shape(name, arrays, layout, sets)
        if array.shape != expected:
            problem = f"has the shape {array.shape} instead of {expected}" if expected else "is not an array of a cache"
            raise UserError(f"{path / name}: {problem}; it is not trusted")
        size = array.nbytes if array.dtype.kind in "biuf" else 0
        cache_bytes += 0 if is_dense(name) else size
        shard_bytes += 0 if name.startswith("text/") else min(shard, images) * size // max(1, images)
    if shard > SHARD_IMAGES:
        raise UserError(f"{path}: claims {shard} images per shard; the maximum is {SHARD_IMAGES}; it is not trusted")
    if (needed := max(cache_bytes, shard_bytes)) > (memory := machine_memory()):
        raise UserError(
            f"{path}: claims to hold {images} images, {shard} per shard: {needed / 2**30:.0f} GiB in memory, but this "
            f"machine has {memory / 2**30:.0f}; the metadata is wrong, or the cache needs a larger machine"
        )


def check_attributes(path: Path, attributes: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError if the settings of a cache, or of one of its mask sets, are incomplete."""
    fingerprint, recorded = attributes.get("fingerprint"), attributes.get("recorded")
    complete = isinstance(fingerprint, dict) and isinstance(recorded, dict)
    complete = complete and all(isinstance(fingerprint.get(part), dict) for part in ("clip", "dataset"))
    complete = complete and {"model", "image_size", "precision", "weights_sha256"} <= fingerprint["clip"].keys()
    if not (complete and "name" in fingerprint["dataset"]):
        raise UserError(f"{path}: does not record how it was made, as every cache does; it is not trusted")
    for name, settings in sets.items():
        if not settings.keys() >= MASK_SETTINGS:
            raise UserError(f"{path / 'masks' / name}: does not record how it was made; it is not trusted")


def _check_tokens(path: Path, name: str, settings: Mapping[str, Any], sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError unless a mask set says completely which model's tokens it is clustered from, if not CLIP's."""
    if (tokens := settings.get("tokens")) is None:
        return
    complete = name != DEFAULT_MASKS and isinstance(tokens, dict) and tokens.get("dense") in DENSE
    complete = complete and isinstance(tokens.get("grid"), list) and len(tokens["grid"]) == 2
    complete = complete and all(type(n) is int and n > 0 for n in (*tokens["grid"], tokens.get("channels")))
    if complete and "masks" in tokens:
        owner = sets.get(tokens["masks"], {}).get("tokens") if isinstance(tokens["masks"], str) else None
        complete = isinstance(owner, dict) and "model" in owner and owner.get("grid") == tokens["grid"]
        complete = complete and tokens["dense"] == "none"
    elif complete:
        model, origin = tokens.get("model"), settings.get("origin", False)
        complete = isinstance(model, dict) and model.keys() >= MODEL and isinstance(origin, str | None)
        complete = complete and type(model["image_size"]) is int and model["precision"] in ("fp32", "bf16", "fp16")
    if not complete:
        raise UserError(f"{path}: does not record which tokens it was clustered from; it is not trusted")


def _shape(
    path: str, arrays: Mapping[str, Any], layout: Layout, sets: Mapping[str, Mapping[str, Any]]
) -> tuple[int, ...] | None:
    """The shape that the array at a path must have given the other arrays; None if a cache has no such array."""
    if (match := find_spec(path)) is None:
        return None
    spec, group = match
    layout = layout.of_masks(sets.get(group, {})) if spec.owner == "masks" else layout
    if layout.dense not in spec.stored_with:
        return None
    classes, templates = (
        min(arrays[key].shape[0], NAMES) if (key := f"text/{group}/{field}") in arrays else 0
        for field in ("name", "template")
    )
    return spec.shape(symbol_sizes(layout, classes, templates))


def _codecs(codecs: Any) -> list[str]:
    """The names of codecs, including those inside a sharding codec."""
    names = []
    for codec in codecs:
        names.append(codec["name"])
        inner = codec.get("configuration", {})
        names += _codecs([*inner.get("codecs", ()), *inner.get("index_codecs", ())])
    return names
