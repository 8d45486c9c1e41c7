"""A change of many files of a cache in one step: prepared beside them, committed by a renaming, then applied.

Killed before the renaming, the cache is unchanged; killed after it, the next writer applies the change.
"""

from pathlib import Path

from data_cache.errors import UserError
from data_cache.system.files import is_folder

REDO = "redo"
"""The folder of a committed change inside the cache, with the files that are to replace those of the cache."""


def complete_transaction(cache: Path) -> None:
    """Apply a committed change, if there is one; may be interrupted and repeated. Only for the cache's one writer."""
    change = cache / REDO
    if not is_folder(change):
        return
    folders = [change]
    for file in sorted(change.rglob("*")):
        if file.is_dir():
            folders.append(file)
            continue
        place = cache / file.relative_to(change)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    for folder in sorted(folders, reverse=True):
        folder.rmdir()


def check_no_transaction(cache: Path) -> None:
    """Raise UserError if a committed change of a cache was not applied to its end."""
    if is_folder(cache / REDO):
        raise UserError(
            f"{cache}: an extension is in progress or was cut short; run the same `precompute` command again"
        )
