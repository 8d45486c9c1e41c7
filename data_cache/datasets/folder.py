"""Your own images: a folder of pictures, a list of class names and, as far as there are any, label maps."""

import re
from pathlib import Path

from data_cache.datasets.base import MAX_CLASSES, PairedFiles, Recipe, label_table
from data_cache.datasets.pairing import files_below, find_pairs
from data_cache.errors import UsageError, UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
USUAL_SPLITS = ("train", "val", "test")


def open_folder(root: Path, split: str) -> PairedFiles:
    """Open `images/<split>/` with `labels/<split>/`, or all of `images/` if it is not divided into splits.

    A picture without a label map has no seen label anywhere. `images/` counts as divided once it holds a
    folder called train, val or test; a split that has no folder is then an error, so that nobody evaluates on
    the training images by accident.

    Raises:
        UsageError: The split cannot be the name of a folder.
        UserError: classes.txt is missing or unusable, there are no images, or no label map belongs to any.

    """
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise UsageError(f"'{split}' cannot be a split: it names a folder in images/")
    classes = read_classes(root / "classes.txt")
    images, labels = root / "images", root / "labels"
    if (images / split).is_dir() or any((images / name).is_dir() for name in USUAL_SPLITS):
        images, labels = images / split, labels / split
    pairs = find_pairs(root, images, labels, SUFFIXES)
    if not any(pair.label for pair in pairs):
        _refuse_stray_labels(labels, root / "labels")
    return PairedFiles("folder", root, split, classes, pairs, label_table(range(len(classes))))


def read_classes(path: Path) -> tuple[str, ...]:
    """Read one class name a line; the line is the class id.

    Raises:
        UserError: The file is missing or not UTF-8, has a blank line between names, a name twice, a name with
            a comma (which `--unseen` could not tell from two), or more names than label values.

    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors begin the file with a byte order mark
    except FileNotFoundError:
        raise UserError(f"no {path}: write one class name a line, in the order of the label values") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: save it as UTF-8 text ({type(error).__name__})") from error
    names = [line.strip() for line in text.rstrip().splitlines()]
    if not names:
        raise UserError(f"{path} is empty: write one class name a line, in the order of the label values")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{path} has {len(names)} classes: at most {MAX_CLASSES} fit into 8-bit label maps")
    first_line: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}: line {number} is blank: every line is a class, the first is label value 0")
        if "," in name:
            raise UserError(f"{path}: line {number}: '{name}' has a comma, which separates names in --unseen")
        if name in first_line:
            raise UserError(f"{path}: '{name}' is on line {first_line[name]} and again on line {number}")
        first_line[name] = number
    return tuple(names)


def _refuse_stray_labels(labels: Path, undivided: Path) -> None:
    """Raise UserError if there are label maps after all, which no image is named like: not what was meant."""
    strays = [labels / name for name in files_below(labels, {".png"})] or sorted(undivided.glob("*.png"))
    if strays:
        raise UserError(
            f"no image has a label map: {len(strays)} are in {strays[0].parent}, such as {strays[0].name}, "
            f"but they must be named like the images and lie at the same place below {labels}"
        )


RECIPE = Recipe(
    open_folder,
    published="your own pictures",
    tree="classes.txt, images/*.jpg (or .png, .webp, .bmp, .tif), and, as far as labelled, labels/*.png",
)
