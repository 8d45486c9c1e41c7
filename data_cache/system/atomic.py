"""Atomic writes: a file or folder is built under a draft name next to its target and then renamed."""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_NAME_BYTES = 255
"""The longest file name that nearly all file systems allow."""
SUFFIX_BYTES = len(f".{uuid.UUID(int=0).hex}.partial")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a draft path next to `path` to write to. The draft replaces `path` once it is flushed to disk.

    If the block raises, `path` is unchanged and the draft is removed. Missing parent folders are created, and a
    symlink's target is replaced, not the link. The draft has another suffix than `path`, so PIL needs `format`.

    Raises OSError with the name of `path` if it cannot be written.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path  # realpath returns the link itself for a loop
    if path.exists() and not (path.is_file() or path.is_dir()):  # as root, the rename would replace /dev/null
        raise FileExistsError(errno.EEXIST, "a device or a pipe, not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = draft_path(path)
    try:
        yield draft
        if path.exists():
            shutil.copymode(path, draft)
        fsync(draft)
        draft.replace(path)
        fsync(path.parent)
    except OSError as error:
        # a failed write names no file, and users do not know the draft's name
        error.filename, error.filename2 = str(path), None
        raise
    finally:
        draft.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def draft_path(path: Path) -> Path:
    """A new, unique draft path next to `path`."""
    return path.with_name(f"{_draft_stem(path)}.{uuid.uuid4().hex}.partial")


def draft_paths(path: Path) -> list[Path]:
    """All drafts of `path` that `draft_path` named."""
    name = re.compile(re.escape(_draft_stem(path)) + r"\.[0-9a-f]{32}\.partial")
    return [entry for entry in path.parent.iterdir() if name.fullmatch(entry.name)]


def _draft_stem(path: Path) -> str:
    """The name of `path`, or its hash if a draft's name would be too long."""
    name = os.fsencode(path.name)
    return path.name if len(name) + SUFFIX_BYTES <= MAX_NAME_BYTES else hashlib.sha256(name).hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a symlink (not its target), or a folder with its contents."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
