"""Writes the annotations of an export as the label maps and the classes.txt of a folder dataset."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from data_cache.annotations.export import Annotations
from data_cache.annotations.regions import AnnotatedImage
from data_cache.callbacks import ProgressBar
from data_cache.datasets.base import VOID
from data_cache.datasets.decode import decode_image, decode_label
from data_cache.datasets.folder import CLASSES, check_classes, folder_splits, open_images, read_classes
from data_cache.datasets.pairing_notes import stem_of
from data_cache.errors import UserError
from data_cache.messages import did_you_mean
from data_cache.sample import READERS
from data_cache.system.atomic import atomic_write


class Target(NamedTuple):
    """An image of the export, its file in the folder, and its label map, which may not exist yet."""

    annotated: AnnotatedImage
    image: Path
    label: Path


@dataclass(frozen=True)
class Converted:
    """What a conversion did.

    Args:
        written: number of label maps.
        unchanged: number of label maps that existed with the same content.
        classes: number of names written into classes.txt; 0 if it existed.
        problems: what was skipped, by image of the export.

    """

    written: int
    unchanged: int
    classes: int
    problems: Mapping[str, tuple[str, ...]]


def convert(
    annotations: Annotations,
    root: Path,
    overwrite: bool,
    palette_of: Callable[[Sequence[str]], UInt8[np.ndarray, "256 3"]],
    progress_bar: ProgressBar,
) -> Converted:
    """Write a label map for each annotated image of `root`/images, and classes.txt if it is missing.

    Pixels without an annotation become 255. The label maps are palette PNGs with the colors of `palette_of`. An
    image that cannot be converted is reported and skipped.

    Args:
        annotations: What to convert.
        root: The folder of a folder dataset.
        overwrite: Whether to replace classes.txt, and label maps that differ.
        palette_of: The color of each label value, given the class names.
        progress_bar: Opened over the images.

    Raises:
        UserError: classes.txt lacks a class of the annotations, or label maps exist without it; no image is in the
            folder.

    """
    matches, problems = _match(annotations, root)
    if not matches:
        first = annotations.images[0].file if annotations.images else "none"
        raise UserError(f"no image of the annotations (the first is {first}) is in {root / 'images'}")
    classes, written = _write_classes(annotations.classes, root, overwrite, matches)
    ids = {name: value for value, name in enumerate(classes)}
    counts = {True: 0, False: 0}
    with ThreadPoolExecutor(READERS) as pool, progress_bar("converting", len(matches), "images") as advance:
        write = partial(_write, ids=ids, overwrite=overwrite, palette=palette_of(classes))
        for target, (new, found) in zip(matches, pool.map(write, matches), strict=True):
            advance(1)
            if new is not None:
                counts[new] += 1
            if found:
                problems[target.annotated.file] = found
    return Converted(counts[True], counts[False], written, problems)


def _match(annotations: Annotations, root: Path) -> tuple[list[Target], dict[str, tuple[str, ...]]]:
    """The image of the folder that each image of the export is, and why others are none.

    Exports name images by various parts of their paths: two paths match if one ends with the other, without suffixes.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for split in folder_splits(root):
        for name in open_images(root, split).ids:
            by_name[stem_of(name).rpartition("/")[2]].append(name)
    matches: list[Target] = []
    problems: dict[str, tuple[str, ...]] = {}
    taken: dict[Path, str] = {}
    for image in annotations.images:
        stem = "/" + stem_of(image.file).lstrip("./")
        names = by_name[stem.rpartition("/")[2]]
        found = [name for name in names if _ends_alike("/" + stem_of(name), stem)]
        if len(found) != 1:
            which = f"{' and '.join(found[:2])} both have this name" if found else f"is not in {root / 'images'}"
            problems[image.file] = (f"skipped: {which}",)
            continue
        label = root / "labels" / (stem_of(found[0]).partition("/")[2] + ".png")
        if label in taken:
            problems[image.file] = (f"skipped: {taken[label]} has the same label map, {label}",)
            continue
        taken[label] = image.file
        matches.append(Target(image, root / found[0], label))
    return matches, problems


def _ends_alike(name: str, stem: str) -> bool:
    return name.endswith(stem) or stem.endswith(name.removeprefix("/images"))


def _write_classes(
    names: tuple[str, ...], root: Path, overwrite: bool, matches: Sequence[Target]
) -> tuple[tuple[str, ...], int]:
    """The classes, and how many of them were written into classes.txt."""
    file = root / CLASSES
    if file.exists() and not overwrite:
        classes = read_classes(file)
        for name in names:
            if name not in classes:
                raise UserError(
                    f"{file} has no class '{name}' of the annotations{did_you_mean(name, classes)}; add it as the last "
                    "line, or pass --overwrite"
                )
        return classes, 0
    check_classes(names, "the annotations")
    old = [target.label for target in matches if target.label.exists()]
    if old and not overwrite:
        raise UserError(
            f"there are label maps, such as {old[0]}, but no {CLASSES} that names their values; pass --overwrite to "
            "replace them, or move them away"
        )
    with atomic_write(file) as draft:
        draft.write_text("\n".join(names) + "\n", encoding="utf-8")
    return names, len(names)


def _write(
    target: Target,
    ids: Mapping[str, int],
    overwrite: bool,
    palette: UInt8[np.ndarray, "256 3"],
) -> tuple[bool | None, tuple[str, ...]]:
    """Whether a label map was written (None: the image has no label), and what was skipped."""
    try:
        height, width, _ = decode_image(target.image).shape
        label, problems = target.annotated.draw(height, width, ids)
        if (label == VOID).all():
            return None, problems
        if target.label.exists():
            if _is_same(target.label, label):
                return False, problems
            if not overwrite:
                raise UserError(f"{target.label} exists and differs; pass --overwrite to replace it")
    except UserError as error:
        return None, (f"skipped: {error}",)
    picture = Image.fromarray(label)
    picture.putpalette(palette.tobytes())
    with atomic_write(target.label) as draft:
        picture.save(draft, "PNG", optimize=True)
    return True, problems


def _is_same(file: Path, label: UInt8[np.ndarray, "height width"]) -> bool:
    try:
        return np.array_equal(decode_label(file), label)
    except UserError:
        return False
