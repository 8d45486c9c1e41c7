"""Notes on files that were not paired or look like mistakes; each function returns "" if there is nothing to report."""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from data_cache.datasets.paired_files import Pair
from data_cache.messages import first_names

_USUAL = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_OTHERS = (".jpe", ".jfif", ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".pnm", ".tga", ".dng")
READABLE_SUFFIXES = frozenset(_USUAL)
"""Lower-case suffixes of the images that are read from a user's folder."""
IMAGE_SUFFIXES = frozenset(_USUAL + _OTHERS)
"""Suffixes of image files, including those that no dataset reads."""
ARRAY_SUFFIXES = frozenset((".npy", ".npz", ".mat"))
"""Suffixes of array files, which label maps may have been saved as."""
_LABEL = "masks?|labels?|labelids|(label)?trainids|gt|gtfine|ground_?truth|segm?|segmentation|semantic|annot(ation)?s?"
_LABEL_TAIL, _LABEL_HEAD = re.compile(rf"([ ._-]+({_LABEL}))+$"), re.compile(rf"^({_LABEL})[ ._-]+")


def skipped_images(files: Iterable[str], suffixes: Collection[str], folder: Path) -> str:
    """A note on the image files of a folder that are skipped because of their suffixes."""
    others = [file for file in files if suffix_of(file) in IMAGE_SUFFIXES - set(suffixes)]
    if not others:
        return ""
    return (
        f"images in {folder} skipped because of their file endings: {_suffix_counts(others)}; only "
        f"{', '.join(sorted(suffixes))} are read"
    )


def shared_labels(pairs: Sequence[Pair]) -> str:
    """A note on label maps that belong to several images."""
    counts = Counter(pair.label for pair in pairs if pair.label)
    if not (shared := {label for label, count in counts.items() if count > 1}):
        return ""
    first = min(shared)
    images = " and ".join(pair.image for pair in pairs if pair.label == first)
    return f"label maps shared by several images: {len(shared)}; {first} belongs to {images}: rename all but one"


def label_like_images(names: Sequence[str]) -> str:
    """A note on images that are named like label maps of other images."""
    stems = Counter(map(stem_of, names))
    matches = [
        name for name in names if (plain := _LABEL_TAIL.sub("", stem_of(name))) != stem_of(name) and plain in stems
    ]
    matches += [name for name in names if stems[stem_of(name)] > 1 and suffix_of(name) == ".png"]
    if not matches:
        return ""
    return (
        f"images named like label maps of other images: {len(matches)} ({first_names(matches)}); put label maps into a "
        "separate folder, labels/"
    )


def unused_files(files: Sequence[str], labels: Path) -> str:
    """A note on files among the label maps that are named like images but are neither images nor arrays."""
    if not files:
        return ""
    return (
        f"files in {labels} that are named like images but are not label maps: {_suffix_counts(files)}; a label map is "
        "a PNG file of class ids"
    )


def unused_labels(files: Sequence[str], labels: Path, images: Sequence[str], tail: str) -> str:
    """A note on label files without an image, with a fix for the first that nearly matches an image."""
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


def _suffix_counts(files: Iterable[str]) -> str:
    """The number of files per suffix: "2 .gif, 1 .txt"."""
    counts = Counter(map(suffix_of, files))
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def stem_of(name: str) -> str:
    """A path without its suffix."""
    return name.rpartition(".")[0]


def suffix_of(name: str) -> str:
    """The lower-case suffix of a path, with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 strings are faster than Path objects
