"""A change of many files of a cache as one step: made ready beside them, committed by a renaming, then carried out.

Killed before the renaming, the cache is as it was; killed after it, whoever writes next carries the change out.
"""

from pathlib import Path

from data_cache.errors import UserError

REDO = "redo"
"""The folder of a committed change, inside the cache: every file in it takes its place in the cache."""


def finish(cache: Path) -> None:
    """Carry out a committed change, if there is one; as often as need be. Only for the cache's one writer."""
    change = cache / REDO
    if not change.is_dir():
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


def check_finished(cache: Path) -> None:
    """Raise UserError if a committed change of a cache was not carried out to its end."""
    if (cache / REDO).is_dir():
        raise UserError(f"{cache}: an extension is going on or was cut short; run the same `precompute` command again")
