"""Whether a file is there and can be read: what nobody can say just now is neither missing nor damaged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from data_cache.errors import UnreadableError, one_line


@contextmanager
def read_errors(where: Path) -> Iterator[None]:
    """Turn what the system says when it does not let a file under `where` be read into an UnreadableError."""
    try:
        yield
    except OSError as error:
        raise unreadable_error(error, where) from None


def unreadable_error(error: OSError, where: Path) -> UnreadableError:
    """What is said of a file under `where` that the system does not let be read."""
    problem = f"{error.filename or where}: cannot be read ({error.strerror or one_line(error)})"
    return UnreadableError(f"{problem}; nothing says that it is damaged: see why, and try again")


def stat_or_none(path: Path) -> os.stat_result | None:
    """What the system says of a path; None if nothing is there. Raises UnreadableError if it does not say."""
    with read_errors(path), suppress(FileNotFoundError, NotADirectoryError):
        return path.stat()
    return None


def is_folder(path: Path) -> bool:
    """Whether a folder is there. Unlike `Path.is_dir` it raises UnreadableError where nobody can say."""
    status = stat_or_none(path)
    return status is not None and S_ISDIR(status.st_mode)


def is_file(path: Path) -> bool:
    """Whether a file is there that can be read to its end. Raises UnreadableError where nobody can say."""
    status = stat_or_none(path)
    return status is not None and S_ISREG(status.st_mode)
