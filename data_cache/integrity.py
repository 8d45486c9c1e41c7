"""Verify a cache's files against its journal records, and find damaged shards and parts."""

from collections.abc import Sequence

from data_cache.callbacks import Progress, ignore
from data_cache.errors import UnreadableError, UserError
from data_cache.journal import Stamp, file_problem, file_problems
from data_cache.reader import Cache

Files = dict[str, Stamp]


def verify_files(cache: Cache, progress: Progress = ignore) -> tuple[int, list[str]]:
    """Read every recorded file; return their number and one line per problem, including unfinished shards.

    `progress` counts files read.
    """
    stamps, problems = {}, []
    unsharded = _unsharded_parts(cache)
    for part in ("", *(f"masks/{name}" for name in cache.masks), *unsharded):
        try:
            records = cache.journal(part).records() if part in unsharded else cache.complete_records(part)
        except UserError as error:
            problems.append(str(error))
            continue
        if None in records:
            problems.append(f"{cache.path / part}: {records.count(None)} of {len(records)} shards are not done")
        stamps |= {key: stamp for record in records if record for key, stamp in record.files.items()}
    return len(stamps), problems + file_problems(cache.path, stamps, progress)


def damaged_shards(cache: Cache, part: str) -> list[int]:
    """The shards of the features ("") or of a mask set whose record is damaged or does not match their files.

    Raises UnreadableError for a file that cannot be read at the moment: it may be intact.
    """
    journal, damaged = cache.journal(part), []
    for shard in range(cache.layout.shards):
        try:
            record = journal.record(shard)
            if record:
                cache.check_record(record, part)
        except UnreadableError:
            raise
        except UserError:
            damaged.append(shard)
            continue
        if record and _differs(cache, record.files):
            damaged.append(shard)
    return damaged


def damaged_parts(cache: Cache) -> list[str]:
    """Which of the image names and the text features are damaged or have no record.

    Raises UnreadableError, as `damaged_shards` does.
    """
    damaged = []
    for part in _unsharded_parts(cache):
        try:
            (record,) = cache.journal(part).records()
        except UnreadableError:
            raise
        except UserError:
            record = None
        if record is None or _differs(cache, record.files):
            damaged.append(part)
    return damaged


def recorded_files(cache: Cache, shard: int, parts: Sequence[str]) -> list[Files | None]:
    """The files listed in a shard's record of each part; None for a damaged or missing record."""
    files: list[Files | None] = []
    for part in parts:
        try:
            record = cache.journal(part).record(shard)
        except UnreadableError:
            raise
        except UserError:
            record = None
        files.append(record and record.files)
    return files


def _differs(cache: Cache, files: Files) -> bool:
    return any(file_problem(cache.path / key, stamp) for key, stamp in files.items())


def _unsharded_parts(cache: Cache) -> list[str]:
    """The parts that are written as a whole when the cache is created."""
    return ["image", f"text/{cache.texts_name}"]
