"""Opens what a label tool exported, in whichever of the supported formats it is."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_cache.annotations.coco_json import read_coco
from data_cache.annotations.colors import ColorCodedImage, read_color_table
from data_cache.annotations.cvat import read_cvat
from data_cache.annotations.labelme import read_labelme
from data_cache.annotations.regions import AnnotatedImage, RegionImage
from data_cache.datasets.decode import read_bytes
from data_cache.datasets.pairing import files_below
from data_cache.errors import UsageError, UserError
from data_cache.limits import read_json

UNLABELED = {"background", "_background_", "ignore", "__ignore__", "void", "unlabeled", "unlabelled"}
"""Names that label tools give to pixels of no class, in lower case. These pixels become 255."""
MAX_JSON = 2**31
COLOR_TABLE = "labelmap.txt"
"""The color table of CVAT's format "Segmentation mask"."""


@dataclass(frozen=True)
class Annotations:
    """The class names of an export, without those of `UNLABELED`, and its images."""

    classes: tuple[str, ...]
    images: Sequence[AnnotatedImage]


def open_annotations(path: Path, colors: Path | None) -> Annotations:
    """Read a COCO JSON file, a CVAT XML file, or a folder of labelme files or of color-coded PNG files.

    Args:
        path: The file or folder.
        colors: The color table of color-coded PNG files; labelmap.txt in the folder by default.

    Raises:
        UserError, UsageError: Nothing is there, or it has another format, or is malformed.

    """
    path = path.expanduser()
    if path.suffix.lower() in (".zip", ".gz", ".tar", ".7z"):
        raise UserError(f"--from {path}: is an archive; unpack it and name the folder")
    if path.is_dir():
        if colors is None and (path / COLOR_TABLE).is_file():
            colors = path / COLOR_TABLE
        classes, images = _color_coded(path, colors) if colors else _of_folder(path)
    elif colors:
        raise UsageError(f"--colors {colors}: is for --from with a folder of color-coded PNG files, not {path}")
    else:
        classes, images = _of_file(path)
    names = tuple(name for name in dict.fromkeys(classes) if name.lower() not in UNLABELED)
    if not names:
        raise UserError(f"--from {path}: has no annotated class")
    return Annotations(names, images)


def _of_file(path: Path) -> tuple[Sequence[str], Sequence[RegionImage]]:
    if path.suffix.lower() == ".xml":
        with _malformed(path):
            return read_cvat(read_bytes(path))
    content = _json(path)
    if "shapes" in content:
        with _malformed(path):
            return _named_regions([read_labelme(path.name, content)])
    if "annotations" in content and "images" in content:
        with _malformed(path):
            return read_coco(content)
    raise UserError(f"--from {path}: is neither a COCO nor a labelme file")


def _of_folder(path: Path) -> tuple[Sequence[str], Sequence[RegionImage]]:
    """The labelme files of a folder, or its only COCO or CVAT file."""
    files, images, others = sorted(files_below(path, {".json", ".xml"})), [], []
    for name in files:
        content = {} if name.lower().endswith(".xml") else _json(path / name)
        if "shapes" in content:
            with _malformed(path / name):
                images.append(read_labelme(name, content))
        elif name.lower().endswith(".xml") or "annotations" in content:
            others.append(path / name)
    if images:
        return _named_regions(images)
    if len(others) == 1:
        return _of_file(others[0])
    if others:
        raise UserError(f"--from {path}: has {len(others)} files of annotations, such as {others[0]}; name one of them")
    raise UserError(
        f"--from {path}: has no annotations of labelme, COCO or CVAT; for color-coded PNG files, name their color "
        "table with --colors"
    )


def _named_regions(images: Sequence[RegionImage]) -> tuple[Sequence[str], Sequence[RegionImage]]:
    """Labelme files have no list of classes: the names in them, sorted."""
    return sorted({region.name for image in images for region in image.regions}), images


def _color_coded(path: Path, colors: Path) -> tuple[Sequence[str], Sequence[ColorCodedImage]]:
    table = read_color_table(colors)
    folder = path / "SegmentationClass" if (path / "SegmentationClass").is_dir() else path
    names = sorted(files_below(folder, {".png"}))
    if not names:
        raise UserError(f"--from {path}: has no PNG files")
    return tuple(table.values()), [ColorCodedImage(name, folder / name, table) for name in names]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        content = read_json(path, MAX_JSON)
    except FileNotFoundError:
        raise UserError(f"--from {path}: no such file") from None
    except ValueError as error:
        raise UserError(f"--from {path}: cannot be read as JSON ({error})") from None
    return content if isinstance(content, dict) else {}


@contextmanager
def _malformed(path: Path) -> Iterator[None]:
    """Turn what a malformed file raises into a UserError that names it."""
    try:
        yield
    except UserError as error:
        raise error.prefixed(f"--from {path}: ") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(f"--from {path}: is malformed ({reason})") from None
