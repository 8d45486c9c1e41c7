"""Your own images: a folder of them, a list of class names and, where there are any, label maps."""

import re
from pathlib import Path

from data_cache.class_list import check_names, read_names
from data_cache.datasets.base import DatasetSpec
from data_cache.datasets.paired_files import MAX_CLASSES, PairedFiles, label_table
from data_cache.datasets.pairing import Pairing, files_below, find_pairs
from data_cache.datasets.pairing_notes import PICTURES, SUFFIXES
from data_cache.errors import UsageError, UserError

_SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?|(trn)|(dev|eval(?:uation)?)")
_KINDS = {"trn": "train", "dev": "val", "eval": "val", "evaluation": "val"}
_LABELS = "labels?|masks?|annot(ation)?s?|gt|groundtruth|seg(mentation)?s?|semantic"
_LABEL_FOLDERS = re.compile(rf"({_LABELS})(class|classes|maps?|images?|imgs?|pngs?)?")


def open_folder(root: Path, split: str) -> PairedFiles:
    """Open `images/<split>/` with `labels/<split>/`, or all of `images/` if it is not divided into splits.

    An image without a label map has no seen label anywhere. `images/` counts as divided once it contains a folder with
    one of the usual names of a split (train, Training, val2017, validation, test_images); a split without a folder is
    then an error, so that nobody evaluates on the training images by accident.

    Raises:
        UsageError: The split cannot be the name of a folder, or its folder is missing.
        UserError: classes.txt is missing or unusable, there are no images, or there are label maps of which none
            belongs to an image.

    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UsageError(f"'{split}' cannot be a split: it names a folder in images/")
    classes = read_classes(root / "classes.txt")
    images, labels, notes = root / "images", root / "labels", []
    if part := split_folder(images, split):
        images, labels = images / part, labels / _same_split(labels, part)
    elif kind_of_split(split) != "train":
        notes.append(f"images/ is not divided: {split} is all of it, also what a training saw; make images/{split}")
    found = find_pairs(root, images, labels, SUFFIXES)
    _refuse_deeper_splits(found)
    if not any(pair.label for pair in found.pairs):
        _refuse_misplaced_labels(root, labels, found)
    table = label_table(range(len(classes)))
    return PairedFiles("folder", root, split, classes, found.pairs, table, (*notes, *found.notes))


def read_classes(file: Path) -> tuple[str, ...]:
    """Read one class name per line; the line is the class id.

    Raises:
        UserError: The file is missing or not UTF-8, has a blank line between names, a name twice, a name with
            a comma (which `--unseen` could not tell from two), numbers before the names, or more names than label
            values.

    """
    how = "write one class name per line, in the order of the label values"
    try:
        names = [line.strip() for line in read_names(file)]
    except FileNotFoundError:
        raise UserError(f"no {file}: {how}") from None
    if not names:
        raise UserError(f"{file} is empty: {how}")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{file} has {len(names)} classes: at most {MAX_CLASSES} fit into 8-bit label maps")
    check_names(names, str(file))
    for number, name in enumerate(names, start=1):
        if "," in name:
            raise UserError(f"{file}: line {number}: '{name}' has a comma, which separates names in --unseen")
    return tuple(names)


def split_folder(folder: Path, split: str) -> str | None:
    """The name of the subfolder that contains a split; None if the folder is not divided into splits.

    Raises:
        UsageError: It is divided, and has no such split, or two folders that may be meant.

    """
    folders = _folders(folder)
    splits = list(filter(kind_of_split, folders))
    if split in folders:
        return split
    meant = [name for name in splits if kind_of_split(name) == kind_of_split(split)]
    if len(meant) == 1:
        return meant[0]
    if splits:
        problem = f"{' and '.join(meant)} may be meant" if meant else f"there are {', '.join(splits)}"
        raise UsageError(f"{folder} has no split '{split}': {problem}; pass --split with the name of a folder")
    return None


def _same_split(labels: Path, part: str) -> str:
    """The folder of `labels` with a split's label maps, which may spell its name otherwise, or be missing."""
    folders = _folders(labels)
    alike = [name for name in folders if kind_of_split(name) and kind_of_split(name) == kind_of_split(part)]
    return alike[0] if part not in folders and len(alike) == 1 else part


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def kind_of_split(name: str) -> str | None:
    """Which split a folder's name means (train, val or test, in the usual spellings); None for other names."""
    plain = re.sub(r"(19|20)\d\d$", "", re.sub(r"[\W_]+", "", name.lower()))
    plain = re.sub(r"(set|split|data|images?|imgs?)$", "", plain)
    if not (match := _SPLIT.fullmatch(plain)):
        return None
    return match[1] or _KINDS[plain]


def _refuse_deeper_splits(found: Pairing) -> None:
    """Raise UsageError if folders of several splits are somewhere below other folders: not what was meant."""
    folders = {name for pair in found.pairs for name in pair.image.split("/")[1:-1]}
    splits = {name: kind for name in sorted(folders) if (kind := kind_of_split(name))}
    if len(set(splits.values())) > 1:
        raise UsageError(
            f"images/ is divided into {', '.join(splits)} below other folders; move these up, as images/train and "
            "images/val"
        )


def _refuse_misplaced_labels(root: Path, labels: Path, found: Pairing) -> None:
    """Raise UserError if there are label maps after all, none of which belongs to an image: not what was meant."""
    if found.unpaired:
        raise UserError(f"no image has a label map: {found.notes[-1]}")
    if strays := sorted((root / "labels").glob("*.png")):
        raise UserError(
            f"no image has a label map: {len(strays)} are in {strays[0].parent}, such as {strays[0].name}, "
            f"but they must be named like the images and be at the same place below {labels}"
        )
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name != "labels"):
        if _LABEL_FOLDERS.fullmatch(re.sub(r"[\W\d_]+", "", folder.name.lower())) and files_below(folder, PICTURES):
            raise UserError(
                f"no image has a label map: {folder} looks like a folder of them; rename it to {root / 'labels'}"
            )


SPEC = DatasetSpec(
    open_folder,
    source="your own pictures",
    layout="classes.txt, images/*.jpg (or .png, .webp, .bmp, .tif) and, where labelled, labels/*.png",
)
