"""Images chosen on the command line: by index, by id, or by the end of an id."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from data_cache.errors import UsageError


def choose_images(ids: Sequence[str], names: Sequence[str]) -> list[int]:
    """Indices of images in a list of ids, each named by its index, its id, or the end of its id, with suffix or not.

    A name may be several, separated by commas. Raises UsageError for a name that fits no image, or several.
    """
    index_of = {known: index for index, known in enumerate(ids)}
    chosen = []
    for name in names:
        # an id may contain commas
        whole = _index_of_id(name, index_of)
        chosen += [whole] if whole is not None else [_index_of(part.strip(), index_of) for part in name.split(",")]
    return list(dict.fromkeys(chosen))


def _index_of_id(name: str, index_of: dict[str, int]) -> int | None:
    if name in index_of:
        return index_of[name]
    ends = [index for known, index in index_of.items() if "," in name and _ends_with(known, name)]
    return ends[0] if len(ends) == 1 else None


def _index_of(name: str, index_of: dict[str, int]) -> int:
    if (index := _index_of_id(name, index_of)) is not None:
        return index
    # ids may be numbers with leading zeros
    if name.isdecimal() and str(int(name)) == name:
        if int(name) < len(index_of):
            return int(name)
        raise UsageError(f"--image {name}: there are {len(index_of)} images, 0 to {len(index_of) - 1}")
    ends = [index for known, index in index_of.items() if name and _ends_with(known, name)]
    if len(ends) == 1:
        return ends[0]
    problem = f"matches {len(ends)} images; write more of the name" if ends else "no such image"
    raise UsageError(f"--image {name}: {problem}; names look like {next(iter(index_of))}")


def _ends_with(known: str, name: str) -> bool:
    return f"/{known}".endswith(f"/{name}") or f"/{PurePosixPath(known).with_suffix('')}".endswith(f"/{name}")
