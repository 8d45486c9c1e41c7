"""The schema of the cache: which arrays it has, how they are cut into chunks, and how metadata is sealed."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from data_cache.drafts import draft_of
from data_cache.errors import UserError
from data_cache.limits import read_json
from data_cache.redo import check_finished

FORMAT, VERSION = "clipteacher-cache", 2
Dense = Literal["float16", "int8", "none"]
DENSE_BYTES = {"float16": (2, 0), "int8": (1, 4), "none": (0, 0)}
"""Bytes of a number, and of a token on top of its numbers (its scale)."""


@dataclass(frozen=True)
class Layout:
    """The sizes that shape every array. A shard is `shard` consecutive images: one chunk of every array."""

    images: int
    views: int
    channels: int
    grid: tuple[int, int]
    shard: int
    dense: Dense

    @property
    def shards(self) -> int:
        """How many shards the images make."""
        return math.ceil(self.images / self.shard)

    def span(self, shard: int) -> slice:
        """The images of one shard."""
        return slice(shard * self.shard, min((shard + 1) * self.shard, self.images))

    def images_in(self, shards: Iterable[int]) -> int:
        """How many images some shards hold."""
        return sum(span.stop - span.start for span in map(self.span, shards))

    def bytes_per_image(self, label_bytes: int) -> dict[str, int]:
        """Uncompressed size of what is stored for an image; `label_bytes` is the width of a mask label."""
        tokens = self.grid[0] * self.grid[1] * self.views
        number, token = DENSE_BYTES[self.dense]
        dense = tokens * (self.channels * number + token)
        return {"cls": self.views * self.channels * 2, "dense": dense, "masks": tokens * label_bytes}


def label_dtype(max_labels: int) -> str:
    """uint8 while all labels fit below the reserved 255, else uint16 (reserved 65535)."""
    return "uint8" if max_labels <= 254 else "uint16"


def reserved_label(dtype: str) -> int:
    """The label of a token that is not ignored: the greatest value of the type."""
    return 255 if dtype == "uint8" else 65535


def _array(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dims: str,
    dtype: str,
    fill: Any,
) -> None:
    group.create_array(
        name,
        shape=shape,
        chunks=chunk,
        dtype=dtype,
        fill_value=fill,
        dimension_names=tuple(dims.split()),
        compressors=[ZstdCodec(level=3, checksum=True)],
    )


def create_feature_arrays(root: zarr.Group, layout: Layout) -> None:
    """Arrays of stage 1 without the masks. Every payload carries a checksum."""
    n, s, v, c = layout.images, layout.shard, layout.views, layout.channels
    for name in ("id", "path", "content_hash", "label_hash", "status"):
        _array(root, f"image/{name}", (n,), (s,), "image", "string", "")
    _array(root, "image/size", (n, 2), (s, 2), "image height_width", "int32", 0)
    _array(root, "view/box", (n, v, 4), (s, v, 4), "image view top_left_bottom_right", "int32", 0)
    _array(root, "view/flip", (n, v), (s, v), "image view", "bool", False)
    _array(root, "cls", (n, v, c), (s, v, c), "image view channel", "float16", 0)
    _array(root, "journal", (layout.shards,), (1,), "shard", "string", "")
    _array(root, "image/journal", (1,), (1,), "record", "string", "")
    if layout.dense != "none":
        h, w = layout.grid
        root.create_array(
            "dense",
            shape=(n, v, h, w, c),
            chunks=(1, 1, h, w, c),
            shards=(s, 1, h, w, c),
            dtype=layout.dense,
            fill_value=0,
            dimension_names=("image", "view", "y", "x", "channel"),
            compressors=[Crc32cCodec()],  # features hardly compress; a checksum is what they need
        )
        if layout.dense == "int8":
            _array(root, "dense_scale", (n, v, h, w), (s, v, h, w), "image view y x", "float32", 0)


def create_mask_arrays(root: zarr.Group, name: str, layout: Layout, attributes: Mapping[str, Any]) -> None:
    """Arrays of one mask set; `attributes` tell how it was clustered and hold `dtype`."""
    n, s, v, (h, w), dtype = layout.images, layout.shard, layout.views, layout.grid, attributes["dtype"]
    group = root.create_group(f"masks/{name}", attributes=dict(attributes))
    _array(group, "label", (n, v, h, w), (s, v, h, w), "image view y x", dtype, reserved_label(dtype))
    _array(group, "count", (n, v), (s, v), "image view", "int32", 0)
    _array(group, "journal", (layout.shards,), (1,), "shard", "string", "")


def create_text_arrays(root: zarr.Group, name: str, classes: int, templates: int, channels: int) -> None:
    """Arrays of one set of text features: a row a class."""
    group = root.create_group(f"text/{name}")
    _array(group, "features", (classes, channels), (classes, channels), "class channel", "float32", 0)
    _array(group, "name", (classes,), (classes,), "class", "string", "")
    _array(group, "template", (templates,), (templates,), "template", "string", "")
    _array(group, "journal", (1,), (1,), "record", "string", "")


def build(path: Path, fill: Callable[[zarr.Group, Path], None], attributes: Mapping[str, Any]) -> None:
    """Create a cache at `path`, all or nothing: it appears under its name only once `fill` is through.

    `fill` gets the group and the folder in which it is being built.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_of(path)
    try:
        group = zarr.create_group(draft, attributes={"format": FORMAT, "version": VERSION, **attributes})
        fill(group, draft)
        seal(draft)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def seal(path: Path) -> None:
    """Consolidate the metadata and write a hash over all of it into the root's attributes, in one step.

    Whoever reads meanwhile, or after a kill, finds the old metadata or the new, and nothing between.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for node in path.rglob("zarr.json"):
            place = copy / node.relative_to(path)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(node, place)
        with warnings.catch_warnings():
            # zarr warns that consolidated metadata is no part of the v3 specification yet; xarray warns without it
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(copy)
        root = read_json(copy / "zarr.json")
        root["attributes"].pop("metadata_sha256", None)
        root["attributes"]["metadata_sha256"] = metadata_hash(copy)
    file = path / "zarr.json"
    draft = draft_of(file)
    with draft.open("w") as opened:
        opened.write(json.dumps(root, indent=2))
        opened.flush()
        os.fsync(opened.fileno())  # it takes the place of the only copy
    draft.replace(file)


def metadata_hash(path: Path) -> str:
    """SHA-256 over every zarr.json in the order of their names, as canonical JSON, without the hash itself."""
    root = read_json(path / "zarr.json")
    root["attributes"].pop("metadata_sha256", None)
    nodes = sorted(root["consolidated_metadata"]["metadata"])
    if any(Path(node).is_absolute() or ".." in Path(node).parts for node in nodes):
        raise ValueError("a name that leads out of the cache")
    contents = [["", root], *([node, read_json(path / node / "zarr.json")] for node in nodes)]
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


def check_seal(path: Path) -> None:
    """Raise UserError unless `path` is a cache of this version whose metadata is as it was written."""
    foreign = f"{path}: not a clipteacher cache; pass --cache PATH of one, or of a path that does not exist yet"
    if not (path / "zarr.json").is_file():
        raise UserError(foreign)
    try:
        check_finished(path)
        attributes = read_json(path / "zarr.json")["attributes"]
        if attributes.get("format") != FORMAT:
            raise UserError(foreign)
        if attributes.get("version") != VERSION:
            raise UserError(
                f"{path}: cache version {attributes.get('version')}, this program reads {VERSION}; "
                "run `precompute` again into another --cache"
            )
        sound = metadata_hash(path) == attributes.get("metadata_sha256")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise UserError(f"{path}: the cache's metadata is damaged; delete the cache and run `precompute` again")
