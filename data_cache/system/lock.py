"""One writer a cache or run: an advisory lock, which the system drops when its holder dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from data_cache.errors import UserError

_HELD: set[TextIO] = set()


def _let_go() -> None:
    # a forked process, such as one that decodes, would hold the lock of a killed one for as long as it lives
    for file in _HELD:
        file.close()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def writer_lock(
    written: Path, other: str = "another precompute", option: str = "--cache", lock: Path | None = None
) -> Iterator[None]:
    """Hold the right to write a cache, or whatever else has a `lock`, by default the file beside it.

    Raises UserError if another process has it: by what `other` work, who does it, and which `option` names a place
    of one's own.
    """
    path = lock or lock_file(written)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _locked(file, path):
            file.seek(0)
            holder = file.read().strip() or "just starting or ending"
            raise UserError(f"{written}: {other} is writing it ({holder}); wait for it, or pass another {option}")
        _HELD.add(file)
        try:
            file.truncate(0)
            since = datetime.now().astimezone().isoformat(" ", "seconds")
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
            file.flush()
            yield
        finally:
            _HELD.discard(file)
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
