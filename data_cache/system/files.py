"""File status and read errors: a file that cannot be read at the moment is neither missing nor damaged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from data_cache.errors import UnreadableError, one_line


@contextmanager
def read_errors(where: Path) -> Iterator[None]:
    """Turn an OSError from reading a file under `where` into an UnreadableError."""
    try:
        yield
    except OSError as error:
        raise unreadable_error(error, where) from None


def unreadable_error(error: OSError, where: Path) -> UnreadableError:
    """The UnreadableError for a system error from reading a file under `where`."""
    problem = f"{error.filename or where}: cannot be read ({error.strerror or one_line(error)})"
    return UnreadableError(f"{problem}; it is not known to be damaged: find the cause and try again")


def stat_or_none(path: Path) -> os.stat_result | None:
    """The status of a path; None if nothing exists there. Raises UnreadableError if that cannot be determined."""
    with read_errors(path), suppress(FileNotFoundError, NotADirectoryError):
        return path.stat()
    return None


def is_folder(path: Path) -> bool:
    """Whether a path is a folder. Unlike `Path.is_dir`, raises UnreadableError if that cannot be determined."""
    status = stat_or_none(path)
    return status is not None and S_ISDIR(status.st_mode)


def is_file(path: Path) -> bool:
    """Whether a path is a regular file. Raises UnreadableError if that cannot be determined."""
    status = stat_or_none(path)
    return status is not None and S_ISREG(status.st_mode)
