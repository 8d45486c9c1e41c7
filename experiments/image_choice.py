"""Images chosen on the command line: by index, by id, or by the end of an id."""

from collections.abc import Sequence
from pathlib import PurePosixPath

from data_cache.errors import UsageError


def choose_images(ids: Sequence[str], names: Sequence[str]) -> list[int]:
    """Indices of images, each named by its index, its id, or the end of its id, with or without file extension.

    One name may be several, separated by commas. Raises UsageError if a name matches no image, or several.
    """
    index_by_id = {image_id: index for index, image_id in enumerate(ids)}
    chosen = []
    for name in names:
        # an id may contain commas
        index = _find_id(name, index_by_id)
        chosen += [index] if index is not None else [_find(part.strip(), index_by_id) for part in name.split(",")]
    return list(dict.fromkeys(chosen))


def _find_id(name: str, index_by_id: dict[str, int]) -> int | None:
    if name in index_by_id:
        return index_by_id[name]
    matches = [index for image_id, index in index_by_id.items() if "," in name and _ends_with(image_id, name)]
    return matches[0] if len(matches) == 1 else None


def _find(name: str, index_by_id: dict[str, int]) -> int:
    if (index := _find_id(name, index_by_id)) is not None:
        return index
    # an id may be a number with leading zeros, which is not an index
    if name.isdecimal() and str(int(name)) == name:
        if int(name) < len(index_by_id):
            return int(name)
        raise UsageError(f"--image {name}: there are {len(index_by_id)} images, 0 to {len(index_by_id) - 1}")
    matches = [index for image_id, index in index_by_id.items() if name and _ends_with(image_id, name)]
    if len(matches) == 1:
        return matches[0]
    problem = f"matches {len(matches)} images; use a longer part of the name" if matches else "no such image"
    raise UsageError(f"--image {name}: {problem}; names look like {next(iter(index_by_id))}")


def _ends_with(image_id: str, name: str) -> bool:
    return f"/{image_id}".endswith(f"/{name}") or f"/{PurePosixPath(image_id).with_suffix('')}".endswith(f"/{name}")
