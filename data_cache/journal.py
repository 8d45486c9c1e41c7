"""The journal: which shards are done. A shard is done when its record exists, and never otherwise."""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from data_cache.errors import UserError


@dataclass(frozen=True)
class Record:
    """One finished shard: its images and the size and CRC-32 of each chunk file it left behind.

    A chunk that holds nothing but the fill value is not stored by Zarr; its entry is None. So a file that is
    missing though its entry has a size was lost, and a file that is missing with entry None was never there.
    """

    shard: int
    ok: int
    failed: int
    files: dict[str, tuple[int, int] | None]


class Journal:
    """The records of one part of the cache (features, a mask set, texts): a string per shard, "" if not done.

    It is an ordinary Zarr array named `journal` inside the group it speaks for, so it moves, dies and is
    checksummed with the data, and no reader of the group trips over an unknown file.
    """

    def __init__(self, root: Path, group: zarr.Group) -> None:
        self._root = root
        self._array: Any = group["journal"]

    def records(self) -> list[Record | None]:
        """All records, None where a shard is not done. Raises UserError for a damaged record."""
        return self._parsed(slice(None))

    def record(self, shard: int) -> Record | None:
        """One record, None where the shard is not done. Raises UserError if it is damaged."""
        return self._parsed(slice(shard, shard + 1))[0]

    def _parsed(self, span: slice) -> list[Record | None]:
        try:
            texts = np.asarray(self._array[span], dtype=object)
            return [_parse(text, shard) for shard, text in enumerate(texts, start=span.start or 0)]
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._root / self._array.path}: a damaged journal record ({error}); `verify --repair` mends it"
            ) from None

    def commit(self, shard: int, ok: int, failed: int, chunks: Iterable[str]) -> Record:
        """Declare a shard done. Its chunk files reach the disk before its record does."""
        record = Record(shard, ok, failed, {key: _stamp(self._root / key) for key in sorted(chunks)})
        self._array[shard] = json.dumps(vars(record))
        return record

    def erase(self, shard: int) -> None:
        """Call a shard not done."""
        self._array[shard] = ""


def missing_files(root: Path, records: Iterable[Record | None], below: str = "") -> list[Path]:
    """Chunk files below some folder that a record promises and that are gone or have another size."""
    named = ((key, stamp) for record in records if record for key, stamp in record.files.items())
    promised = ((root / key, stamp) for key, stamp in named if key.startswith(below))
    return [path for path, stamp in promised if stamp and not (path.exists() and path.stat().st_size == stamp[0])]


def bad_files(
    root: Path, stamps: Mapping[str, tuple[int, int] | None], tell: Callable[[int], None] = lambda _: None
) -> list[str]:
    """One line for each file that is not as its record says: read whole and compared by size and CRC-32.

    `tell` hears of files read.
    """
    found = []
    for key, stamp in stamps.items():
        there = _stamp(root / key, flush=False)
        if there != stamp:
            what = "missing" if there is None else "not recorded" if stamp is None else "damaged"
            found.append(f"{root / key}: {what}")
        tell(1)
    return found


def _parse(text: str, shard: int) -> Record | None:
    if not text:
        return None
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("no record") from None
    if not (isinstance(fields, dict) and isinstance(fields.get("files"), dict)):
        raise ValueError("no record")
    files = {key: stamp and (int(stamp[0]), int(stamp[1])) for key, stamp in fields.pop("files").items()}
    if any(Path(key).is_absolute() or ".." in Path(key).parts for key in files):
        raise ValueError("a path that leads out of the cache")
    record = Record(**fields, files=files)
    if not all(type(number) is int and number >= 0 for number in (record.shard, record.ok, record.failed)):
        raise ValueError("its numbers are none")
    if record.shard != shard:
        raise ValueError(f"shard {record.shard} in the place of shard {shard}")
    return record


def _stamp(path: Path, flush: bool = True) -> tuple[int, int] | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        size, crc = 0, 0
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
