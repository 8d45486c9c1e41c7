"""Notes on files that pairing images with label maps left over, or that look like mistakes; "" if there is nothing."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from data_cache.datasets.paired_files import Pair
from data_cache.messages import first_names

_USUAL = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_OTHERS = (".jpe", ".jfif", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".pnm", ".tga", ".dng")
SUFFIXES = frozenset(_USUAL)
"""Endings of the images that a user's own folder may hold, in lower case."""
PICTURES = frozenset(_USUAL + _OTHERS)
"""Endings of pictures, including those that no dataset reads."""
ARRAYS = frozenset((".npy", ".npz", ".mat"))
"""Endings of arrays, which label maps may have been saved as."""
_LABEL = "masks?|labels?|labelids|(label)?trainids|gt|gtfine|ground_?truth|segm?|segmentation|semantic|annot(ation)?s?"
_LABEL_TAIL, _LABEL_HEAD = re.compile(rf"([ ._-]+({_LABEL}))+$"), re.compile(rf"^({_LABEL})[ ._-]+")


def skipped_pictures(files: Iterable[str], suffixes: Collection[str], folder: Path) -> str:
    """On the pictures of a folder that are not read because of their endings."""
    others = [file for file in files if suffix_of(file) in PICTURES - set(suffixes)]
    if not others:
        return ""
    return (
        f"pictures in {folder} that are left out because of their endings: {_endings(others)}; those that are read end "
        f"with {', '.join(sorted(suffixes))}"
    )


def shared_labels(pairs: Sequence[Pair]) -> str:
    """On label maps that several images have in common."""
    counts = Counter(pair.label for pair in pairs if pair.label)
    if not (shared := {label for label, count in counts.items() if count > 1}):
        return ""
    first = min(shared)
    images = " and ".join(pair.image for pair in pairs if pair.label == first)
    return f"label maps that serve several images each: {len(shared)}; {first} serves {images}: rename all but one"


def label_like_images(names: Sequence[str]) -> str:
    """On images that are named like label maps of other images."""
    stems = Counter(map(stem_of, names))
    found = [
        name for name in names if (plain := _LABEL_TAIL.sub("", stem_of(name))) != stem_of(name) and plain in stems
    ]
    found += [name for name in names if stems[stem_of(name)] > 1 and suffix_of(name) == ".png"]
    if not found:
        return ""
    return (
        f"images that are named like label maps of others: {len(found)} ({first_names(found)}); label maps belong into "
        "a folder of their own, labels/"
    )


def unused_files(files: Sequence[str], labels: Path) -> str:
    """On files beside the label maps that are named like images but are neither pictures nor arrays."""
    if not files:
        return ""
    return (
        f"files in {labels} that are named like images but are not label maps: {_endings(files)}; a label map is a PNG "
        "file of class ids"
    )


def unused_labels(files: Sequence[str], labels: Path, images: Sequence[str], tail: str) -> str:
    """On label files without an image, and what is nearly right about one of them."""
    if not files:
        return ""
    start = f"files in {labels} that belong to no image: {len(files)}"
    by_stem = {stem_of(name).lower(): name for name in images}
    for file in files:
        stem = stem_of(file).lower()
        plain = _LABEL_HEAD.sub("", _LABEL_TAIL.sub("", stem))
        if image := by_stem.get(stem) or by_stem.get(plain):
            verb, preposition = ("rename", "to") if suffix_of(file) == ".png" else ("save", "as")
            return f"{start}; {verb} {file} {preposition} {stem_of(image)}{tail}.png if it belongs to {image}"
    return f"{start}; {first_names(files)}; a label map is a PNG file named like its image"


def _endings(files: Iterable[str]) -> str:
    """How many files have each ending: "2 .gif, 1 .txt"."""
    counts = Counter(map(suffix_of, files))
    return ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))


def stem_of(name: str) -> str:
    """A path without its ending."""
    return name.rpartition(".")[0]


def suffix_of(name: str) -> str:
    """The ending of a path in lower case, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 strings are faster than Path objects
