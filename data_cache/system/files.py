"""File status and read errors: a file that cannot be read at the moment is neither missing nor damaged."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from data_cache.errors import UnreadableError, UserError, one_line


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


def nearest_existing(path: Path) -> Path:
    """The path itself if something exists there, else the nearest folder above it."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def check_free_space(path: Path, what: str, need: int, advice: str, replaced: int = 0) -> None:
    """Raise UserError if a disk is too small for what will be written.

    Args:
        path: where it will be written, on the disk of the nearest folder that exists.
        what: the start of the sentence "<what> needs about .. GiB".
        need: its bytes.
        advice: the end of the message.
        replaced: bytes of files that will be deleted first.

    """
    free = shutil.disk_usage(nearest_existing(path)).free + replaced
    if need > free:
        sizes = f"{need / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB are free"
        raise UserError(f"{path}: {what} needs about {sizes}; {advice}")
