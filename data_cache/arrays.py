"""The arrays of a cache, in one table: their creation, shape checks, shard fields and chunk files follow from it."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data_cache.layout import DENSE, Dense, Layout, reserved_label

if TYPE_CHECKING:
    import zarr

Owner = Literal["names", "features", "masks", "texts"]
"""The part of a cache whose journal lists an array's chunk files.

Names and texts are written at creation, the others shard by shard.
"""

Sizes = Mapping[str, int]
"""What the symbols in a shape stand for (`symbol_sizes`)."""

DIMENSIONS = {
    "image": ("N", "S"),
    "view": ("V", "V"),
    "y": ("h", "h"),
    "x": ("w", "w"),
    "channel": ("C", "C"),
    "height_width": ("2", "2"),
    "top_left_bottom_right": ("4", "4"),
    "shard": ("ceil(N / S)", "1"),
    "record": ("1", "1"),
    "class": ("classes", "classes"),
    "template": ("templates", "templates"),
}
"""The size of each dimension and of a chunk along it, as symbols."""

OWN_NAMES = {"y": "mask_y", "x": "mask_x", "channel": "mask_channel"}
"""Names of dimensions in a mask set with a model of its own: xarray wants equal names to have equal sizes."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of a cache.

    Args:
        name: its path; `<name>` stands for the name of a mask set or of a set of text features.
        owner: the part of a cache whose journal lists its chunk files.
        dimensions: names of its dimensions.
        dtype: its data type; "a or b" if the layout or the mask set decides.
        fill: its fill value, which unfinished images hold; None is the reserved label.
        chunk: symbols for the size of a chunk, if not those of `DIMENSIONS`.
        shard_file: symbols for the part of the array that one file holds, if a file holds several chunks.
        compressed: whether zstd compresses its chunks; if not, they only carry a CRC-32C.
        stored_with: the ways to store dense tokens for which the array exists.

    """

    name: str
    owner: Owner
    dimensions: tuple[str, ...]
    dtype: str
    fill: int | bool | str | None
    chunk: tuple[str, ...] = ()
    shard_file: tuple[str, ...] = ()
    compressed: bool = True
    stored_with: tuple[Dense, ...] = DENSE

    @property
    def field(self) -> str:
        """The last part of its path: the name of its field in `data_cache.content.Shard`."""
        return self.name.rpartition("/")[2]

    @property
    def shape_symbols(self) -> tuple[str, ...]:
        """Its shape, as symbols."""
        return tuple(DIMENSIONS[name][0] for name in self.dimensions)

    @property
    def chunk_symbols(self) -> tuple[str, ...]:
        """The shape of a chunk, as symbols."""
        return self.chunk or tuple(DIMENSIONS[name][1] for name in self.dimensions)

    def path(self, group: str = "") -> str:
        """Its path in a cache; `group` names the mask set or the text features."""
        return self.name.replace("<name>", group)

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape, as numbers."""
        return tuple(sizes[symbol] for symbol in self.shape_symbols)

    def dtype_in(self, layout: Layout, label_dtype: str = "") -> str:
        """Its data type in a cache, or in a mask set with labels of this type."""
        options = self.dtype.split(" or ")
        if len(options) == 1:
            return options[0]
        return next(option for option in options if option in (layout.dense, label_dtype))

    def fill_value(self, dtype: str) -> int | bool | str:
        """Its fill value, given its data type."""
        return reserved_label(dtype) if self.fill is None else self.fill

    def files(self, sizes: Sizes, group: str = "", shard: int | None = None) -> Iterator[str]:
        """The paths of its chunk files in a cache: those of one shard of images, or all."""
        file_shape = (sizes[symbol] for symbol in self.shard_file or self.chunk_symbols)
        indices = [range(math.ceil(n / part)) for n, part in zip(self.shape(sizes), file_shape, strict=True)]
        if shard is not None:
            indices[0] = range(shard, shard + 1)
        return (f"{self.path(group)}/c/" + "/".join(map(str, index)) for index in product(*indices))


_IMAGE, _VIEW, _TOKEN = ("image",), ("image", "view"), ("image", "view", "y", "x")
_ONE_CHUNK_PER_VIEW = {
    "dtype": "float16 or int8",
    "fill": 0,
    "chunk": ("1", "1", "h", "w", "C"),
    "shard_file": ("S", "1", "h", "w", "C"),
    "compressed": False,  # features hardly shrink
    "stored_with": ("float16", "int8"),
}

ARRAYS = (
    ArraySpec("image/id", "names", _IMAGE, "string", ""),
    ArraySpec("image/path", "names", _IMAGE, "string", ""),
    ArraySpec("image/journal", "names", ("record",), "string", ""),
    ArraySpec("image/size", "features", (*_IMAGE, "height_width"), "int32", 0),
    ArraySpec("image/content_hash", "features", _IMAGE, "string", ""),
    ArraySpec("image/label_hash", "features", _IMAGE, "string", ""),
    ArraySpec("image/status", "features", _IMAGE, "string", ""),
    ArraySpec("view/box", "features", (*_VIEW, "top_left_bottom_right"), "int32", 0),
    ArraySpec("view/flip", "features", _VIEW, "bool", False),
    ArraySpec("cls", "features", (*_VIEW, "channel"), "float16", 0),
    ArraySpec("dense", "features", (*_TOKEN, "channel"), **_ONE_CHUNK_PER_VIEW),
    ArraySpec("dense_scale", "features", _TOKEN, "float32", 0, stored_with=("int8",)),
    ArraySpec("journal", "features", ("shard",), "string", ""),
    ArraySpec("masks/<name>/label", "masks", _TOKEN, "uint8 or uint16", None),
    ArraySpec("masks/<name>/count", "masks", _VIEW, "int32", 0),
    ArraySpec("masks/<name>/dense", "masks", (*_TOKEN, "channel"), **_ONE_CHUNK_PER_VIEW),
    ArraySpec("masks/<name>/dense_scale", "masks", _TOKEN, "float32", 0, stored_with=("int8",)),
    ArraySpec("masks/<name>/journal", "masks", ("shard",), "string", ""),
    ArraySpec("text/<name>/features", "texts", ("class", "channel"), "float32", 0),
    ArraySpec("text/<name>/name", "texts", ("class",), "string", ""),
    ArraySpec("text/<name>/template", "texts", ("template",), "string", ""),
    ArraySpec("text/<name>/journal", "texts", ("record",), "string", ""),
)
"""Every array that a cache may have."""

SHARD_FIELDS = {
    spec.field: spec
    for spec in ARRAYS
    if spec.owner in ("features", "masks") and spec.field not in ("journal", "dense", "dense_scale")
}
"""The fields of a shard that are stored as they are: all but its dense tokens."""

DENSE_TOKENS = next(spec for spec in ARRAYS if spec.name == "dense")
OWN_TOKENS = next(spec for spec in ARRAYS if spec.name == "masks/<name>/dense")
"""The dense tokens of a mask set whose model is not CLIP."""

PAYLOADS = {"cls": ("cls",), "dense": ("dense", "dense_scale"), "masks": ("label",)}
"""The fields of the large arrays of a cache, in the groups by which its size is reported."""


def find_spec(path: str) -> tuple[ArraySpec, str] | None:
    """The spec of the array at a path, and the name of its mask set or text features; None for an unknown array."""
    first, _, rest = path.partition("/")
    group, _, field = rest.partition("/")
    name = f"{first}/<name>/{field}" if first in ("masks", "text") else path
    return next(((spec, group) for spec in ARRAYS if spec.name == name), None)


def is_dense(path: str) -> bool:
    """Whether an array, or a file, holds dense tokens: those of CLIP or of a mask set."""
    folders = path.split("/")
    return folders[2 if folders[0] == "masks" else 0 :][:1] in (["dense"], ["dense_scale"])


def symbol_sizes(layout: Layout, classes: int = 0, templates: int = 0) -> Sizes:
    """What the symbols in a shape stand for."""
    (h, w), numbers = layout.grid, {str(n): n for n in (1, 2, 4)}
    symbols = {"N": layout.images, "S": layout.shard, "V": layout.views, "C": layout.channels, "h": h, "w": w}
    return {**numbers, **symbols, "ceil(N / S)": layout.shards, "classes": classes, "templates": templates}


def create_arrays(
    root: "zarr.Group",
    owner: Owner,
    layout: Layout,
    sizes: Sizes,
    group: str = "",
    label_dtype: str = "",
    own_model: bool = False,
) -> None:
    """Create the arrays of one owner, including its journal. Every chunk carries a checksum.

    `own_model`: for a mask set that is clustered from the tokens of another model than CLIP.
    """
    from zarr.codecs import Crc32cCodec, ZstdCodec  # imported here to keep the command line's start-up fast

    for spec in ARRAYS:
        if spec.owner == owner and layout.dense in spec.stored_with:
            dtype = spec.dtype_in(layout, label_dtype)
            root.create_array(
                spec.path(group),
                shape=spec.shape(sizes),
                chunks=tuple(sizes[symbol] for symbol in spec.chunk_symbols),
                shards=tuple(sizes[symbol] for symbol in spec.shard_file) or None,
                dtype=dtype,
                fill_value=spec.fill_value(dtype),
                dimension_names=[OWN_NAMES.get(n, n) if own_model else n for n in spec.dimensions],
                compressors=[ZstdCodec(level=3, checksum=True) if spec.compressed else Crc32cCodec()],
            )


def chunk_files(owner: Owner, layout: Layout, sizes: Sizes, group: str = "", shard: int | None = None) -> list[str]:
    """The chunk files that a record of this owner lists: those of one shard, or all."""
    specs = [spec for spec in ARRAYS if spec.owner == owner and layout.dense in spec.stored_with]
    return [file for spec in specs if spec.field != "journal" for file in spec.files(sizes, group, shard)]


def blank_fields(fields: Iterable[str], layout: Layout, images: int, label_dtype: str) -> dict[str, Any]:
    """Shard fields of `images` images, filled with their fill values: arrays, and lists for strings.

    Dense tokens are float16 in memory, regardless of how they are stored.
    """
    sizes, values = {**symbol_sizes(layout), "N": images}, {}
    for name in fields:
        spec = DENSE_TOKENS if name == "dense" else SHARD_FIELDS[name]
        dtype = "float16" if name == "dense" else spec.dtype_in(layout, label_dtype)
        fill = spec.fill_value(dtype)
        if dtype == "string":
            values[name] = [fill] * images
        else:  # np.zeros takes no memory until it is written to
            values[name] = np.full(spec.shape(sizes), fill, dtype) if fill else np.zeros(spec.shape(sizes), dtype)
    return values


def bytes_per_image(layout: Layout, label_dtype: str, masks: Layout | None = None) -> dict[str, int]:
    """Uncompressed bytes per image of each payload: of the features and of a mask set.

    Args:
        layout: the sizes of the cache.
        label_dtype: data type of the masks.
        masks: the sizes of a mask set (`Layout.of_masks`): count it alone. By default, CLIP's own set.

    """
    total = dict.fromkeys(PAYLOADS, 0)
    parts = {"masks": masks} if masks else {"features": layout, "masks": layout.of_masks({})}
    for spec in ARRAYS:
        part = parts.get(spec.owner)
        payload = next((name for name, fields in PAYLOADS.items() if spec.field in fields), None)
        if part and payload and part.dense in spec.stored_with:
            shape = spec.shape({**symbol_sizes(part), "N": 1})
            total[payload] += math.prod(shape) * np.dtype(spec.dtype_in(part, label_dtype)).itemsize
    return total
