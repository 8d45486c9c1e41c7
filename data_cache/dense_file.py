"""The file of a shard's dense tokens, written as a stream: bit for bit what Zarr's sharding codec would write."""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import google_crc32c
import numpy as np
from jaxtyping import Shaped, UInt8, UInt64

from data_cache.journal import Stamp
from data_cache.system.atomic import draft_path

ABSENT = 2**64 - 1
"""Offset and length, in the index of a shard file, of a chunk that is not stored."""


def write_dense_file(path: Path, tokens: Shaped[np.ndarray, "image y x channel"], images: int) -> Stamp:
    """Write one chunk per image and flush the file to the disk.

    The format is Zarr 3's `sharding_indexed`: the chunks, each followed by its CRC-32C, then an index of their offsets
    and lengths with a CRC-32C of its own. A chunk of zeros is left out. Zarr would assemble the file in memory, copying
    it several times, and the journal would read it again for its CRC-32 (`benchmarks/feed.py` measures the difference).

    Args:
        path: The file, in an existing folder; it appears under this name once it is complete.
        tokens: float16 or int8, one chunk per image; the last shard of a cache has fewer than `images`.
        images: Chunks that the index has room for.

    Returns:
        Size and CRC-32 of the file; None if there is nothing but zeros, for which no file is written.

    Raises:
        OSError: The file cannot be written; `path` stays as it was.

    """
    index = np.full((images, 2), ABSENT, "<u8")
    draft, size, crc = draft_path(path), 0, 0
    try:
        with ThreadPoolExecutor(1) as disk, draft.open("wb") as file:
            written = disk.submit(file.flush)
            for part in _parts(tokens, index):
                size, crc = size + len(part), zlib.crc32(part, crc)
                written.result()  # the disk is one part behind the checksums
                written = disk.submit(file.write, part)
            written.result()
            file.flush()
            os.fsync(file.fileno())
        if (index == ABSENT).all():
            path.unlink(missing_ok=True)
            return None
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return size, crc


def _parts(
    tokens: Shaped[np.ndarray, "image y x channel"], index: UInt64[np.ndarray, "image 2"]
) -> Iterator[bytes | UInt8[np.ndarray, "byte"]]:
    """The parts of the file in order; fills the index on the way and ends with it."""
    start = 0
    for row, chunk in enumerate(tokens):
        data = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
        if data[:64].any() or data.any():  # the first bytes rule out zeros for nearly every chunk
            index[row] = start, len(data) + 4
            start += len(data) + 4
            yield data
            yield _crc32c(data)
    yield index.tobytes()
    yield _crc32c(index.tobytes())


def _crc32c(data: bytes | UInt8[np.ndarray, "byte"]) -> bytes:
    return google_crc32c.value(data).to_bytes(4, "little")
