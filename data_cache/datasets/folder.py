"""Your own images: a folder of images, a list of class names and, optionally, label maps."""

import re
from collections.abc import Sequence
from pathlib import Path

from data_cache.class_list import check_names, read_names
from data_cache.datasets.base import DatasetSpec
from data_cache.datasets.paired_files import MAX_CLASSES, PairedFiles, label_table
from data_cache.datasets.pairing import Pairing, files_below, find_pairs
from data_cache.datasets.pairing_notes import IMAGE_SUFFIXES, READABLE_SUFFIXES
from data_cache.errors import UsageError, UserError

CLASSES = "classes.txt"
_PLACEHOLDER = "TODO: name of label value "
_SPLIT = re.compile(r"(train|val|test)(ing|id|idation)?|(trn)|(dev|eval(?:uation)?)")
_KINDS = {"trn": "train", "dev": "val", "eval": "val", "evaluation": "val"}
_LABELS = "labels?|masks?|annot(ation)?s?|gt|groundtruth|seg(mentation)?s?|semantic"
_LABEL_FOLDERS = re.compile(rf"({_LABELS})(class|classes|maps?|images?|imgs?|pngs?)?")


def open_folder(root: Path, split: str) -> PairedFiles:
    """Open `images/<split>/` with `labels/<split>/`, or all of `images/` if it is not divided into splits.

    An image without a label map has no seen label anywhere. `images/` counts as divided if it contains a folder with a
    common split name (train, Training, val2017, validation, test_images). A split without a folder is then an error, so
    that no evaluation uses training images by accident.

    Raises:
        UsageError: The split is not a valid folder name, or its folder is missing.
        UserError: classes.txt is missing or invalid, there are no images, or no label map belongs to an image.

    """
    _check_split(split)
    return _open(root, split, read_classes(root / CLASSES))


def open_unnamed(root: Path, split: str) -> PairedFiles:
    """Open a split as `open_folder` does, but without classes.txt: each label value has a placeholder as its name."""
    _check_split(split)
    return _open(root, split, tuple(map(placeholder, range(MAX_CLASSES))))


def open_images(root: Path, split: str) -> PairedFiles:
    """The images of a split, whatever the state of its label maps and classes.txt."""
    _check_split(split)
    pairing, *_ = _find(root, split)
    return PairedFiles("folder", root, split, (), pairing.pairs, label_table(()), pairing.notes)


def folder_splits(root: Path) -> tuple[str, ...]:
    """The folders of images/ that are splits, or "train" if it is not divided."""
    return tuple(filter(kind_of_split, _folders(root / "images"))) or ("train",)


def has_classes(root: Path) -> bool:
    """Whether classes.txt exists and has no placeholders."""
    try:
        return not any(line.startswith(_PLACEHOLDER) for line in read_names(root / CLASSES))
    except FileNotFoundError:
        return False


def placeholder(value: int) -> str:
    """The line of classes.txt that stands for the name of a class until the user has written it."""
    return f"{_PLACEHOLDER}{value}"


def _check_split(split: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UsageError(f"'{split}' cannot be a split: it names a folder in images/")


def _open(root: Path, split: str, classes: tuple[str, ...]) -> PairedFiles:
    pairing, labels, notes = _find(root, split)
    if not any(pair.label for pair in pairing.pairs):
        _check_no_misplaced_labels(root, labels, pairing)
    table = label_table(range(len(classes)))
    return PairedFiles("folder", root, split, classes, pairing.pairs, table, (*notes, *pairing.notes))


def _find(root: Path, split: str) -> tuple[Pairing, Path, list[str]]:
    """The images of a split with their label maps, the folder of the label maps, and notes on the split."""
    images, labels, notes = root / "images", root / "labels", []
    if not images.is_dir():
        _check_no_misplaced_images(root)
    if part := split_folder(images, split):
        images, labels = images / part, labels / _same_split(labels, part)
    elif kind_of_split(split) != "train":
        notes.append(
            f"images/ is not divided: {split} has all images, including those of training; make images/{split}"
        )
    pairing = find_pairs(root, images, labels, READABLE_SUFFIXES)
    _check_no_nested_splits(pairing)
    return pairing, labels, notes


def read_classes(file: Path) -> tuple[str, ...]:
    """Read one class name per line, in the order of the class ids.

    Raises:
        UserError: The file is missing, empty or not UTF-8, has blank lines between names, duplicate or numbered names,
            placeholders, names with a comma (the separator of `--unseen`), or more names than label values.

    """
    fix = "write one class name per line, in the order of the label values"
    try:
        names = [line.strip() for line in read_names(file)]
    except FileNotFoundError:
        raise UserError(f"no {file}: {fix}") from None
    if not names:
        raise UserError(f"{file} is empty: {fix}")
    check_classes(names, str(file))
    for number, name in enumerate(names, start=1):
        if name.startswith(_PLACEHOLDER):
            raise UserError(f"{file}: line {number} is still a placeholder: write the class name instead of '{name}'")
    return tuple(names)


def check_classes(names: Sequence[str], where: str) -> None:
    """Raise UserError for names that classes.txt cannot have; `where` names their file."""
    if len(names) > MAX_CLASSES:
        raise UserError(f"{where} has {len(names)} classes: at most {MAX_CLASSES} fit into 8-bit label maps")
    check_names(names, where)
    for number, name in enumerate(names, start=1):
        if "," in name:
            raise UserError(f"{where}: line {number}: '{name}' has a comma, which separates names in --unseen")


def split_folder(folder: Path, split: str) -> str | None:
    """The name of the subfolder with a split; None if the folder is not divided into splits.

    Raises UsageError if it is divided but no subfolder, or several, match the split.
    """
    folders = _folders(folder)
    splits = list(filter(kind_of_split, folders))
    if split in folders:
        return split
    matches = [name for name in splits if kind_of_split(name) == kind_of_split(split)]
    if len(matches) == 1:
        return matches[0]
    if splits:
        problem = f"{' and '.join(matches)} both match" if matches else f"there are {', '.join(splits)}"
        raise UsageError(f"{folder} has no split '{split}': {problem}; pass --split with the name of a folder")
    return None


def _same_split(labels: Path, part: str) -> str:
    """The subfolder of `labels` for a split: the only other spelling of `part` if `part` itself is missing."""
    folders = _folders(labels)
    matches = [name for name in folders if kind_of_split(name) and kind_of_split(name) == kind_of_split(part)]
    return matches[0] if part not in folders and len(matches) == 1 else part


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def kind_of_split(name: str) -> str | None:
    """The split that a folder's name stands for (train, val or test, in common spellings); None for other names."""
    plain = re.sub(r"(19|20)\d\d$", "", re.sub(r"[\W_]+", "", name.lower()))
    plain = re.sub(r"(set|split|data|images?|imgs?)$", "", plain)
    if not (match := _SPLIT.fullmatch(plain)):
        return None
    return match[1] or _KINDS[plain]


def _check_no_nested_splits(pairing: Pairing) -> None:
    """Raise UsageError if folders of several splits are below other folders, which is most likely a mistake."""
    folders = {name for pair in pairing.pairs for name in pair.image.split("/")[1:-1]}
    splits = {name: kind for name in sorted(folders) if (kind := kind_of_split(name))}
    if len(set(splits.values())) > 1:
        raise UsageError(
            f"images/ is divided into {', '.join(splits)} below other folders; move these up, to images/train "
            "and images/val"
        )


def _check_no_misplaced_images(root: Path) -> None:
    """Raise UserError if images are not in images/, but in the folder itself or in one with another name."""
    for folder in (root, *(root / name for name in _folders(root) if not _is_for_labels(name))):
        found = [entry for entry in folder.iterdir() if entry.suffix.lower() in READABLE_SUFFIXES and entry.is_file()]
        if found:
            fix = f"move them into {root / 'images'}" if folder == root else f"rename it to {root / 'images'}"
            raise UserError(f"no folder {root / 'images'}: there are {len(found)} images in {folder}; {fix}")


def _check_no_misplaced_labels(root: Path, labels: Path, pairing: Pairing) -> None:
    """Raise UserError if there are label maps that belong to no image, which is most likely a mistake."""
    if pairing.unpaired:
        raise UserError(f"no image has a label map: {pairing.notes[-1]}")
    if strays := sorted((root / "labels").glob("*.png")):
        raise UserError(
            f"no image has a label map: {len(strays)} are in {strays[0].parent}, such as {strays[0].name}, "
            f"but they must have the names of the images and the same path below {labels}"
        )
    for folder in sorted(entry for entry in root.iterdir() if entry.is_dir() and entry.name != "labels"):
        if _is_for_labels(folder.name) and files_below(folder, IMAGE_SUFFIXES):
            raise UserError(
                f"no image has a label map: {folder} looks like a folder of label maps; rename it to {root / 'labels'}"
            )


def _is_for_labels(folder: str) -> bool:
    return _LABEL_FOLDERS.fullmatch(re.sub(r"[\W\d_]+", "", folder.lower())) is not None


SPEC = DatasetSpec(
    open_folder,
    source="your own images",
    layout="classes.txt, images/*.jpg (or .png, .webp, .bmp, .tif) and optionally labels/*.png",
)
