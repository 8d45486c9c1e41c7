"""What is being built or removed beside a file or a cache, under a name of its own until it takes its place."""

import re
import shutil
import uuid
from pathlib import Path


def draft_of(path: Path) -> Path:
    """A new name beside `path`, which only its own writers take for theirs."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")


def drafts_of(path: Path) -> list[Path]:
    """All that has such a name beside `path`, and nothing of anybody else's."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{32}\.partial")
    return [one for one in path.parent.iterdir() if name.fullmatch(one.name)]


def remove(path: Path) -> None:
    """Remove a file, a link (not what it leads to), or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
