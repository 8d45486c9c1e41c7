"""What is being built or removed beside a file or a cache, under a name of its own until it takes its place."""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST = 255
"""Bytes of a name, on nearly all file systems."""
ENDING = len(f".{uuid.UUID(int=0).hex}.partial")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to. It takes the place of `path` once it is on the disk.

    If the block raises, `path` stays as it was and nothing is left beside it. The folder is made if there is none; of
    a link, what it leads to is replaced. Its name does not end as `path` does: tell PIL the format.

    Raises OSError with the name of `path` if it cannot be written.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # of a loop of links, the link itself
    if path.exists() and not (path.is_file() or path.is_dir()):  # root would put a file in the place of /dev/null
        raise FileExistsError(errno.EEXIST, "a device or a pipe, not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_path(path)
    try:
        yield draft
        if path.exists():
            shutil.copymode(path, draft)  # who may read it is not ours to change
        fsync(draft)
        draft.replace(path)
        fsync(path.parent)
    except OSError as error:
        # a write that fails names no file, and a draft's name means nothing to anybody
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        draft.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Return once a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def draft_path(path: Path) -> Path:
    """A new name beside `path`, which only its own writers take for theirs."""
    return path.with_name(f"{_head(path)}.{uuid.uuid4().hex}.partial")


def draft_paths(path: Path) -> list[Path]:
    """All that has such a name beside `path`, and nothing of anybody else's."""
    name = re.compile(re.escape(_head(path)) + r"\.[0-9a-f]{32}\.partial")
    return [one for one in path.parent.iterdir() if name.fullmatch(one.name)]


def _head(path: Path) -> str:
    """What a draft's name begins with: that of `path`, or a hash of it if the whole would be too long for a name."""
    name = os.fsencode(path.name)
    return path.name if len(name) + ENDING <= LONGEST else hashlib.sha256(name).hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
