"""What of a cache is not as its records say: every file read again, and the shards and parts that are damaged."""

from collections.abc import Callable, Sequence

from data_cache.errors import UserError
from data_cache.journal import bad_files
from data_cache.store import Cache

Files = dict[str, tuple[int, int] | None]


def check_files(cache: Cache, tell: Callable[[int], None] = lambda _: None) -> tuple[int, list[str]]:
    """Read every file that any record promises; returns how many, and what is wrong with which, or not done.

    `tell` hears of files read.
    """
    stamps, found = {}, []
    for part in ("", *_sets(cache), *_wholes(cache)):
        try:
            records = cache.journal(part).records() if part in _wholes(cache) else cache.whole_records(part)
        except UserError as error:
            found.append(str(error))
            continue
        if None in records:
            found.append(f"{cache.path / part}: {records.count(None)} of {len(records)} shards are not done")
        stamps |= {key: stamp for record in records if record for key, stamp in record.files.items()}
    return len(stamps), found + bad_files(cache.path, stamps, tell)


def damaged_shards(cache: Cache, part: str) -> list[int]:
    """The shards of features ("") or of a mask set whose record cannot be read, or does not fit their files."""
    journal, found = cache.journal(part), []
    for shard in range(cache.layout.shards):
        try:
            record = journal.record(shard)
            if record:
                cache.check_files_of(record, part)
        except UserError:
            found.append(shard)
            continue
        if record and bad_files(cache.path, record.files):
            found.append(shard)
    return found


def damaged_parts(cache: Cache) -> list[str]:
    """Those of the image names and the text features that are damaged, or have no record."""
    found = []
    for part in _wholes(cache):
        try:
            (record,) = cache.journal(part).records()
        except UserError:
            record = None
        if record is None or bad_files(cache.path, record.files):
            found.append(part)
    return found


def files_of(cache: Cache, shard: int, parts: Sequence[str]) -> list[Files | None]:
    """What the records of a shard say of its files, a part each; None if they cannot be read or are not there."""
    told: list[Files | None] = []
    for part in parts:
        try:
            record = cache.journal(part).record(shard)
        except UserError:
            record = None
        told.append(record and record.files)
    return told


def _sets(cache: Cache) -> list[str]:
    return [f"masks/{name}" for name in cache.masks]


def _wholes(cache: Cache) -> list[str]:
    return ["image", f"text/{cache.texts_name}"]
