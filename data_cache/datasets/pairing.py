"""Finds images and the label maps that belong to them."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from data_cache.datasets.paired_files import Pair
from data_cache.datasets.pairing_notes import (
    ARRAYS,
    PICTURES,
    label_like_images,
    shared_labels,
    skipped_pictures,
    stem_of,
    suffix_of,
    unused_files,
    unused_labels,
)
from data_cache.errors import UserError
from data_cache.system.files import unreadable_error


class Pairing(NamedTuple):
    """Pairs sorted by image, label files that belong to no image (paths below the root), and notes for the user."""

    pairs: tuple[Pair, ...]
    unpaired: tuple[str, ...]
    notes: tuple[str, ...]


def files_below(folder: Path, suffixes: Collection[str] = ("",)) -> list[str]:
    """Return the files with these lower-case endings, or all files, as paths below `folder` with forward slashes.

    The files may write their ending in any case. Hidden files and folders are left out; links to folders are
    followed, each folder once. A missing folder has no files.

    Raises UnreadableError for a folder that cannot be read: its files must not be taken for missing.
    """
    found: list[str] = []
    visited: set[Path] = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
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


def _refuse(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise unreadable_error(error, Path())


def find_pairs(
    root: Path, images: Path, labels: Path, suffixes: Collection[str], tail: str = "", foreign: str | None = None
) -> Pairing:
    """Pair the images below `images` with the PNG files at the same place below `labels`.

    Args:
        root: Folder that contains both; the pairs are relative to it.
        images: Folder of the images, subfolders included.
        labels: Folder of the label maps. It need not exist.
        suffixes: Endings of the images in lower case, such as {".jpg"}.
        tail: What a label's name has between the image's stem and ".png".
        foreign: Such a tail of label maps of another kind, which are skipped.

    Returns:
        Pairs sorted by the image's path; the label is None where there is no such file.

    Raises:
        UserError: There is no image at all, or the name of one is not valid text and cannot be an id.

    """
    # Strings throughout: with Path objects the 118287 pairs of COCO take seconds.
    image_prefix, label_prefix = _prefix(images, root), _prefix(labels, root)
    image_files = files_below(images)
    label_files = sorted(file for file in files_below(labels) if foreign is None or not stem_of(file).endswith(foreign))
    names = sorted(file for file in image_files if file.lower().endswith(tuple(suffixes)))
    label_of: dict[str, str] = {}
    for file in label_files:
        if file.lower().endswith(".png"):
            label_of.setdefault(stem_of(file), file)
    found = [(name, label_of.get(stem_of(name) + tail)) for name in names]
    pairs = tuple(Pair(image_prefix + name, label_prefix + label if label else None) for name, label in found)
    if not pairs:
        patterns = ", ".join(f"*{suffix}" for suffix in sorted(suffixes))
        raise UserError(f"no images in {images}: looked for {patterns}")
    for pair in pairs:
        if not is_text(pair.image):
            raise UserError(f"the file name {pair.image!r} in {root} is not valid text: rename the file")
    stems, used = {stem_of(name) + tail for name in names}, {label for _, label in found}
    unused = [file for file in label_files if file not in used]
    unpaired = [file for file in unused if suffix_of(file) in PICTURES]
    unpaired += [file for file in unused if suffix_of(file) in ARRAYS and stem_of(file) in stems]
    others = [file for file in unused if suffix_of(file) not in PICTURES | ARRAYS and stem_of(file) in stems]
    notes = (
        skipped_pictures(image_files, suffixes, images),
        shared_labels(pairs),
        label_like_images(names),
        unused_files(others, labels),
        unused_labels(unpaired, labels, names, tail),
    )
    return Pairing(pairs, tuple(label_prefix + file for file in unpaired), tuple(filter(None, notes)))


def pairs_of_list(root: Path, names: Path, image: str, labels: Sequence[str]) -> tuple[Pair, ...]:
    """Pair the images that a list file names, in sorted order, with their label maps.

    Args:
        root: Folder that contains all of them.
        names: The list: one stem per line.
        image: Path of an image below `root` with {} for the stem, such as "JPEGImages/{}.jpg".
        labels: The same for label maps; each image takes the first that exists.

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
        # one listing per folder, not one look-up per file: lists are long and file systems slow
        existing = {template: _stems_of(root, template) for template in templates}
        found = {stem: next((t.format(stem) for t in templates if stem in existing[t]), "") for stem in stems}
        if missing := [stem for stem, path in found.items() if not path]:
            first = " or ".join(str(root / template.format(missing[0])) for template in templates)
            raise UserError(f"{len(missing)} of the {len(stems)} {kind} in {names} are missing, the first is {first}")
        chosen[kind] = found
    return tuple(Pair(chosen["images"][stem], chosen["label maps"][stem]) for stem in stems)


def _stems_of(root: Path, template: str) -> set[str]:
    folder, _, name = template.rpartition("/")
    suffix = name.removeprefix("{}")
    return {file.removesuffix(suffix) for file in files_below(root / folder, {suffix}) if file.endswith(suffix)}


def require_labels(name: str, pairs: Sequence[Pair], images: Path, labels: Path, tail: str = "") -> None:
    """Raise UserError saying how many images have no label map, and naming the first map that is missing."""
    missing = [pair.image for pair in pairs if pair.label is None]
    if missing:
        first = f"{Path(missing[0]).stem}{tail}.png"
        raise UserError(
            f"{name}: {len(missing)} of {len(pairs)} images in {images} have no label map; the first missing "
            f"is {labels / first}: add the label maps or remove these images"
        )


def is_text(name: str) -> bool:
    """Whether a file name can be written as text: a name with other bytes than UTF-8 cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prefix(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"
