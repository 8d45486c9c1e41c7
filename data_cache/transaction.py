"""An atomic change of many files of a cache: prepared as a draft, committed by a rename, then applied.

If killed before the rename, the cache is unchanged; if killed after it, the next writer applies the change.
"""

from pathlib import Path

from data_cache.errors import UserError
from data_cache.system.files import is_folder

REDO = "redo"
"""The folder of a committed change inside the cache, with the files that replace those of the cache."""


def complete_transaction(cache: Path) -> None:
    """Apply a committed change, if any. Only for the holder of the writer lock; may be interrupted and repeated."""
    change = cache / REDO
    if not is_folder(change):
        return
    folders = [change]
    for file in sorted(change.rglob("*")):
        if file.is_dir():
            folders.append(file)
            continue
        target = cache / file.relative_to(change)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    for folder in sorted(folders, reverse=True):
        folder.rmdir()


def check_no_transaction(cache: Path) -> None:
    """Raise UserError if a committed change of a cache is not fully applied."""
    if is_folder(cache / REDO):
        raise UserError(f"{cache}: an extension is in progress or was interrupted; rerun the same `precompute` command")
