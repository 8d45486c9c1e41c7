"""The journal: a shard is done if and only if its record exists."""

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
import zarr

from data_cache.callbacks import Progress, ignore
from data_cache.errors import UnreadableError, UserError
from data_cache.system.files import read_errors, stat_or_none

Stamp = tuple[int, int] | None
"""Size and CRC-32 of a chunk file; None for a chunk that is not stored."""


@dataclass(frozen=True)
class Record:
    """A finished shard: the number of its images that succeeded and failed, and the stamp of each of its chunk files.

    Zarr does not store a chunk of only fill values; its stamp is None. So a missing file with a stamp was lost, and a
    missing file without one never existed.
    """

    shard: int
    ok: int
    failed: int
    files: dict[str, Stamp]

    def subset(self, keys: Iterable[str]) -> "Record":
        """The same record with only some of its files."""
        return replace(self, files={key: self.files[key] for key in keys if key in self.files})


class Journal:
    """The records of one part of the cache (names, features, a mask set, texts): one string per shard, "" if not done.

    It is an ordinary Zarr array named `journal` in the group that it describes. So it is moved, deleted and checksummed
    together with the data, and readers of the group find no unknown file.
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
            with read_errors(self._root / self._array.path):
                texts = np.asarray(self._array[span], dtype=object)
            return [_parse(text, shard) for shard, text in enumerate(texts, start=span.start or 0)]
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._root / self._array.path}: a damaged journal record ({error}); `verify --repair` repairs it"
            ) from None

    def commit(
        self, shard: int, ok: int, failed: int, chunks: Iterable[str], stamps: Mapping[str, Stamp] | None = None
    ) -> Record:
        """Record a shard as done. Its chunk files are flushed to the disk before the record is written.

        `stamps` are those of the files that are flushed already; all others are read.
        """
        known = stamps or {}
        files = {key: known[key] if key in known else _stamp(self._root / key) for key in sorted(chunks)}
        record = Record(shard, ok, failed, files)
        self._array[shard] = json.dumps(vars(record))
        return record

    def clear(self, shard: int) -> None:
        """Mark a shard as not done."""
        self._array[shard] = ""


def missing_files(root: Path, records: Iterable[Record | None], below: str = "") -> list[Path]:
    """Recorded chunk files that are missing or have another size, among the paths that begin with `below`.

    Raises UnreadableError if that cannot be determined.
    """
    stamps = ((key, stamp) for record in records if record for key, stamp in record.files.items())
    paths = ((root / key, stamp) for key, stamp in stamps if key.startswith(below))
    return [path for path, stamp in paths if stamp and _size(path) != stamp[0]]


def file_problems(root: Path, stamps: Mapping[str, Stamp], progress: Progress = ignore) -> list[str]:
    """Read every file and compare its size and CRC-32 with its stamp; return one line per mismatch.

    Files that cannot be read at the moment are listed too. `progress` counts files read.
    """
    problems = []
    for key, stamp in stamps.items():
        try:
            if problem := file_problem(root / key, stamp):
                problems.append(f"{root / key}: {problem}")
        except UnreadableError as error:
            problems.append(str(error))
        progress(1)
    return problems


def file_problem(path: Path, stamp: Stamp) -> str:
    """What is wrong with a file: "missing", "not recorded", "damaged", or "" if it matches its stamp.

    Raises UnreadableError if it cannot be read at the moment.
    """
    actual = _stamp(path, flush=False)
    if actual == stamp:
        return ""
    return "missing" if actual is None else "not recorded" if stamp is None else "damaged"


def _parse(text: str, shard: int) -> Record | None:
    if not text:
        return None
    try:
        fields = json.loads(text)
    except RecursionError:
        raise ValueError("not a record") from None
    if not (isinstance(fields, dict) and isinstance(fields.get("files"), dict)):
        raise ValueError("not a record")
    files = {key: stamp and (int(stamp[0]), int(stamp[1])) for key, stamp in fields.pop("files").items()}
    if any(Path(key).is_absolute() or ".." in Path(key).parts for key in files):
        raise ValueError("a path outside the cache")
    record = Record(**fields, files=files)
    if not all(type(number) is int and number >= 0 for number in (record.shard, record.ok, record.failed)):
        raise ValueError("fields must be non-negative integers")
    if record.shard != shard:
        raise ValueError(f"shard {record.shard} in place of shard {shard}")
    return record


def _size(path: Path) -> int | None:
    """The size of a file; -1 if it is not a regular file, None if nothing exists there."""
    status = stat_or_none(path)
    return None if status is None else status.st_size if S_ISREG(status.st_mode) else -1


def _stamp(path: Path, flush: bool = True) -> Stamp:
    if (size := _size(path)) is None or size < 0:
        return size and (size, 0)
    with read_errors(path), path.open("rb") as file:
        if flush:
            os.fsync(file.fileno())
        size, crc = 0, 0
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return size, crc
