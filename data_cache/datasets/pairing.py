"""Find images and their label maps."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from data_cache.datasets.paired_files import Pair
from data_cache.datasets.pairing_notes import (
    ARRAY_SUFFIXES,
    IMAGE_SUFFIXES,
    label_like_images,
    shared_labels,
    skipped_images,
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
    """The files with these lower-case suffixes, or all files, as paths below `folder` with forward slashes.

    Suffixes match in any case. Hidden files and folders are skipped; links to folders are followed, each folder once.
    A missing folder has no files.

    Raises UnreadableError for a folder that cannot be read: its files must not count as missing.
    """
    files: list[str] = []
    visited: set[Path] = set()
    for parent, folders, names in os.walk(folder, onerror=_raise_unless_missing, followlinks=True):
        real = Path(parent).resolve()
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        prefix = _prefix(Path(parent), folder)
        files += [
            prefix + name for name in names if name.lower().endswith(tuple(suffixes)) and not name.startswith(".")
        ]
    return files


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise unreadable_error(error, Path())


def find_pairs(
    root: Path, images: Path, labels: Path, suffixes: Collection[str], tail: str = "", foreign: str | None = None
) -> Pairing:
    """Pair the images below `images` with the PNG files of the same relative path below `labels`.

    Args:
        root: Folder that contains both; the pairs are relative to it.
        images: Folder of the images, including subfolders.
        labels: Folder of the label maps. It may be missing.
        suffixes: Lower-case suffixes of the images, such as {".jpg"}.
        tail: The part of a label's name between the image's stem and ".png".
        foreign: The tail of another kind of label maps, which are skipped.

    Returns:
        Pairs sorted by the image's path; the label is None if there is no such file.

    Raises:
        UserError: There are no images, or a file name is not valid text and cannot be an id.

    """
    # strings throughout: with Path objects the 118287 pairs of COCO take seconds
    image_prefix, label_prefix = _prefix(images, root), _prefix(labels, root)
    image_files = files_below(images)
    label_files = sorted(file for file in files_below(labels) if foreign is None or not stem_of(file).endswith(foreign))
    names = sorted(file for file in image_files if file.lower().endswith(tuple(suffixes)))
    label_of: dict[str, str] = {}
    for file in label_files:
        if file.lower().endswith(".png"):
            label_of.setdefault(stem_of(file), file)
    matches = [(name, label_of.get(stem_of(name) + tail)) for name in names]
    pairs = tuple(Pair(image_prefix + name, label_prefix + label if label else None) for name, label in matches)
    if not pairs:
        patterns = ", ".join(f"*{suffix}" for suffix in sorted(suffixes))
        raise UserError(f"no images in {images}: looked for {patterns}")
    for pair in pairs:
        if not is_text(pair.image):
            raise UserError(f"the file name {pair.image!r} in {root} is not valid text: rename the file")
    stems, used = {stem_of(name) + tail for name in names}, {label for _, label in matches}
    unused = [file for file in label_files if file not in used]
    known_suffixes = IMAGE_SUFFIXES | ARRAY_SUFFIXES
    unpaired = [file for file in unused if suffix_of(file) in IMAGE_SUFFIXES]
    unpaired += [file for file in unused if suffix_of(file) in ARRAY_SUFFIXES and stem_of(file) in stems]
    others = [file for file in unused if suffix_of(file) not in known_suffixes and stem_of(file) in stems]
    notes = (
        skipped_images(image_files, suffixes, images),
        shared_labels(pairs),
        label_like_images(names),
        unused_files(others, labels),
        unused_labels(unpaired, labels, names, tail),
    )
    return Pairing(pairs, tuple(label_prefix + file for file in unpaired), tuple(filter(None, notes)))


def pairs_of_list(root: Path, names: Path, image: str, labels: Sequence[str]) -> tuple[Pair, ...]:
    """Pair the images of a list file, sorted, with their label maps.

    Args:
        root: Folder that contains all files.
        names: The list file, with one stem per line.
        image: Path of an image below `root`, with {} for the stem, such as "JPEGImages/{}.jpg".
        labels: The same for label maps; each image gets the first that exists.

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
        # one listing per folder, not one lookup per file: lists are long and file systems slow
        existing = {template: _stems_of(root, template) for template in templates}
        paths = {stem: next((t.format(stem) for t in templates if stem in existing[t]), "") for stem in stems}
        if missing := [stem for stem, path in paths.items() if not path]:
            first = " or ".join(str(root / template.format(missing[0])) for template in templates)
            raise UserError(f"{len(missing)} of the {len(stems)} {kind} in {names} are missing, the first is {first}")
        chosen[kind] = paths
    return tuple(Pair(chosen["images"][stem], chosen["label maps"][stem]) for stem in stems)


def _stems_of(root: Path, template: str) -> set[str]:
    folder, _, name = template.rpartition("/")
    suffix = name.removeprefix("{}")
    return {file.removesuffix(suffix) for file in files_below(root / folder, {suffix}) if file.endswith(suffix)}


def require_labels(name: str, pairs: Sequence[Pair], images: Path, labels: Path, tail: str = "") -> None:
    """Raise UserError with the number of images without a label map and the first missing file."""
    missing = [pair.image for pair in pairs if pair.label is None]
    if missing:
        first = f"{Path(missing[0]).stem}{tail}.png"
        raise UserError(
            f"{name}: {len(missing)} of {len(pairs)} images in {images} have no label map; the first missing "
            f"is {labels / first}: add the label maps or remove these images"
        )


def is_text(name: str) -> bool:
    """Whether a file name is valid UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _prefix(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return "" if relative == "." else f"{relative}/"
