"""One writer per cache or run: an advisory lock, which the system releases when its holder dies."""

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


def _release_in_child() -> None:
    # a forked decoding process would otherwise keep the lock after its parent is killed
    for file in _HELD:
        file.close()


os.register_at_fork(after_in_child=_release_in_child)


@contextmanager
def writer_lock(
    target: Path, other: str = "another precompute", option: str = "--cache", lock: Path | None = None
) -> Iterator[None]:
    """Hold the exclusive right to write a cache or a run.

    Args:
        target: The cache or run.
        other: What the message calls the command of another holder.
        option: The option that selects another target, for the message.
        lock: The lock file; by default the one next to the target.

    Raises:
        UserError: Another process holds the lock.

    """
    path = lock or lock_file(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _locked(file, path):
            file.seek(0)
            holder = file.read().strip() or "just starting or ending"
            raise UserError(f"{target}: {other} is writing it ({holder}); wait for it, or pass another {option}")
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
    """The lock file of a cache, the same for every symlink to it."""
    resolved = cache.resolve()
    return resolved.with_name(f"{resolved.name}.lock")


def _locked(file: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # the previous holder may have removed the file after it was opened here
    return path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
