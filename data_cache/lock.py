"""One writer a cache: an advisory lock beside it, which the system drops when its holder dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from data_cache.errors import UserError


@contextmanager
def writer_lock(cache: Path) -> Iterator[None]:
    """Hold the right to write `cache`. Raises UserError, naming the holder, if another process has it."""
    path = lock_file(cache)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _locked(file, path):
            file.seek(0)
            holder = file.read().strip() or "just starting or ending"
            raise UserError(
                f"{cache}: another precompute is writing it ({holder}); wait for it, or pass another --cache"
            )
        file.truncate(0)
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def lock_file(cache: Path) -> Path:
    """The file that says who writes `cache`: one, by whatever link or name the cache is reached."""
    whole = cache.resolve()
    return whole.with_name(f"{whole.name}.lock")


def _locked(file: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # its last holder may have removed the file between our opening and locking it
    return path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
