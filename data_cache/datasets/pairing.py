"""Finds images and the label maps that belong to them."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from data_cache.datasets.base import Pair
from data_cache.errors import UserError


def files_below(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Return the files with these lower-case endings, as paths below `folder` with forward slashes.

    The files may write their ending in any case. Hidden files and folders are left out; links to folders are
    followed, each folder once. A folder that does not exist has no files.
    """
    found: list[str] = []
    visited: set[Path] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = _prefix(Path(parent), folder)
        found += [
            prefix + name for name in names if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        ]
    return found


def find_pairs(root: Path, images: Path, labels: Path, suffixes: Collection[str], tail: str = "") -> tuple[Pair, ...]:
    """Pair the pictures below `images` with the PNG files at the same place below `labels`.

    Args:
        root: Folder that both lie in; the pairs are relative to it.
        images: Folder of the pictures, subfolders included.
        labels: Folder of the label maps. It need not exist.
        suffixes: Endings of the pictures in lower case, such as {".jpg"}.
        tail: What a label's name has between the picture's stem and ".png".

    Returns:
        Pairs sorted by the picture's path; the label is None where there is no such file.

    Raises:
        UserError: There is no picture at all, or the name of one is not valid text and cannot be an id.

    """
    # Strings throughout: with Path objects the 118287 pairs of COCO take seconds.
    image_prefix, label_prefix = _prefix(images, root), _prefix(labels, root)
    maps = {_stem(name): label_prefix + name for name in files_below(labels, {".png"})}
    pairs = [Pair(image_prefix + name, maps.get(_stem(name) + tail)) for name in files_below(images, suffixes)]
    if not pairs:
        patterns = ", ".join(f"*{suffix}" for suffix in sorted(suffixes))
        raise UserError(f"no images in {images}: looked for {patterns}")
    for pair in pairs:
        if not is_text(pair.image):
            raise UserError(f"the file name {pair.image!r} in {root} is not valid text: rename the file")
    return tuple(sorted(pairs, key=lambda pair: pair.image))


def listed_pairs(root: Path, names: Path, image: str, labels: Sequence[str]) -> tuple[Pair, ...]:
    """Pair the pictures that a list file names, in sorted order, with their label maps.

    Args:
        root: Folder that all lie in.
        names: The list: one stem a line.
        image: Path of a picture below `root` with {} for the stem, such as "JPEGImages/{}.jpg".
        labels: The same for label maps; of several the first that is there is taken, for each picture.

    Raises:
        UserError: The list is missing or empty, or files that it names are missing.

    """
    try:
        stems = sorted(set(names.read_text(encoding="utf-8").split()))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"no list of images at {names} ({type(error).__name__})") from None
    if not stems:
        raise UserError(f"no list of images at {names}: the file is empty")
    chosen = {}
    for kind, templates in (("images", [image]), ("label maps", labels)):
        # one listing of a folder, not a question a file: lists are long and file systems slow
        there = {template: _stems_of(root, template) for template in templates}
        found = {stem: next((t.format(stem) for t in templates if stem in there[t]), "") for stem in stems}
        if missing := [stem for stem, path in found.items() if not path]:
            first = " or ".join(str(root / template.format(missing[0])) for template in templates)
            raise UserError(f"{len(missing)} of the {len(stems)} {kind} in {names} are missing, the first is {first}")
        chosen[kind] = found
    return tuple(Pair(chosen["images"][stem], chosen["label maps"][stem]) for stem in stems)


def _stems_of(root: Path, template: str) -> set[str]:
    folder, _, name = template.rpartition("/")
    suffix = name.removeprefix("{}")
    return {file.removesuffix(suffix) for file in files_below(root / folder, {suffix}) if file.endswith(suffix)}


def _prefix(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def is_text(name: str) -> bool:
    """Whether a file name can be written down: a name of other bytes than UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def demand_labels(name: str, pairs: Sequence[Pair], images: Path, labels: Path, tail: str = "") -> None:
    """Raise UserError naming how many images have no label map, and the first map that is missing."""
    missing = [pair.image for pair in pairs if pair.label is None]
    if missing:
        first = f"{Path(missing[0]).stem}{tail}.png"
        raise UserError(
            f"{name}: {len(missing)} of {len(pairs)} images in {images} have no label map; the first missing "
            f"is {labels / first}: add the label maps or remove these images"
        )
