"""Segments any images with any class names."""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_cache.callbacks import OnWarnings, ProgressBar, ignore
from data_cache.datasets.base import VOID
from data_cache.datasets.pairing import files_below, is_text
from data_cache.datasets.pairing_notes import READABLE_SUFFIXES, skipped_images
from data_cache.errors import UsageError, UserError
from data_cache.paths import PREDICTED
from data_cache.system.atomic import atomic_write
from experiments.areas import ClassArea, SegmentedImage
from experiments.config import PredictConfig
from experiments.segmentation import Segmentation
from experiments.vocabulary import parse_names
from experiments.zero_shot import load_segmenter
from trainer.checkpoint import Checkpoint
from trainer.checkpoint_folders import run_of
from trainer.segmenter import Vocabulary

OVERLAY, INDEX, AREAS = ".overlay.png", ".index.png", ".areas.json"


@dataclass(frozen=True)
class PredictReport:
    """The segmented images, and the reasons why others failed."""

    out: Path
    settings: Mapping[str, Any]
    segmented: tuple[SegmentedImage, ...]
    failures: Mapping[str, str]

    @property
    def total(self) -> int:
        """Number of input images."""
        return len(self.segmented) + len(self.failures)

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the classes present in each image."""
        return {
            "out": str(self.out),
            "photographs": self.total,
            "done": len(self.segmented),
            "failed": len(self.failures),
            "failures": dict(self.failures),
            "settings": dict(self.settings),
            "areas": {image.file: areas_as_json(image.areas(1)) for image in self.segmented},
        }

    @property
    def lines(self) -> list[str]:
        """The areas of a single image and its overlay, or the number of images and their folder."""
        if len(self.segmented) == 1:
            return [str(image := self.segmented[0]), str(self.out / f"{image.file}{OVERLAY}")]
        return [f"{self.out}: {len(self.segmented)} of {self.total} images segmented"]

    def check(self) -> None:
        """Raise UserError if an image failed."""
        if self.failures:
            raise UserError(f"{len(self.failures)} of {self.total} images failed; the others are in {self.out}")


def predict(config: PredictConfig, progress_bar: ProgressBar, on_warnings: OnWarnings = ignore) -> PredictReport:
    """Segment images and write the files of `write_result` for each.

    In a folder, images that cannot be read are skipped and reported.

    Raises:
        UserError, UsageError: the checkpoint or the images are missing, or the class names are invalid or cannot be
            encoded.

    """
    root, names = find_images(config.images)
    out = config.out or run_of(config.checkpoint) / PREDICTED
    if config.images.is_dir():
        _check_output_folder(out, root, names)
    classes = None if config.classes is None else parse_names(config.classes)
    segmenter = load_segmenter(
        config.checkpoint, config.device, config.sliding, config.prompts, config.clip, config.clip_weights
    )
    vocabulary = segmenter.vocabulary(classes)
    skipped = skipped_images(files_below(root), READABLE_SUFFIXES, root) if config.images.is_dir() else ""
    on_warnings([*vocabulary.problems, *([skipped] if skipped else [])])
    settings = _settings(config, segmenter.checkpoint, vocabulary)
    segmented, failures = [], {}
    with progress_bar("segmenting", len(names), "images") as advance:
        for name in names:
            try:
                if not is_text(name):
                    raise UserError("its name is not valid text; rename the file")
                result = segmenter.predict(root / name, classes, config.gamma)
                with _name_errors(out):
                    write_result(out, root / name, name, result, settings)
                segmented.append(replace(result.measured, file=name))
            except UserError as error:
                if config.images.is_file():
                    raise
                failures[name if is_text(name) else ascii(name)] = str(error)
            advance(1)
    return PredictReport(out, settings, tuple(segmented), failures)


def areas_as_json(areas: Mapping[str, ClassArea]) -> dict[str, dict[str, Any]]:
    """Areas as they are written and printed."""
    return {name: asdict(area) for name, area in areas.items()}


def _settings(config: PredictConfig, checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "checkpoint": str(config.checkpoint),
        "step": checkpoint.step,
        "size": checkpoint.size,
        "gamma": checkpoint.gamma(config.gamma),
        "sliding": config.sliding,
        "prompts": config.prompts or checkpoint.card["prompts"]["name"],
        "clip": checkpoint.card["clip"]["model"],
        "classes": list(vocabulary.split.classes),
    }


def write_result(out: Path, file: Path, name: str, result: Segmentation, settings: Mapping[str, Any]) -> None:
    """Write the output files of an image.

    For `a/b.jpg`: `a/b.jpg.overlay.png`; `a/b.jpg.index.png`, whose pixels are class indices (8 bits, 16 above 255
    classes); and last `a/b.jpg.areas.json`. Both maps have the size of the upright image.

    Args:
        out: the output folder.
        file: the image.
        name: its path below the input folder.
        result: its segmentation.
        settings: written into the areas file.

    """
    stem = out / name
    index, overlay, areas = (stem.with_name(stem.name + suffix) for suffix in (INDEX, OVERLAY, AREAS))
    with atomic_write(index) as draft:
        kind = np.uint8 if len(result.classes) <= VOID else np.uint16
        Image.fromarray(result.label_map.astype(kind)).save(draft, "PNG")
    with atomic_write(overlay) as draft:
        result.overlay().save(draft, "PNG")
    height, width = result.label_map.shape
    record = {"file": str(file), "height": height, "width": width, "overlay": overlay.name, "index": index.name}
    record |= {"areas": areas_as_json(result.measured.areas()), "settings": dict(settings)}
    with atomic_write(areas) as draft:
        draft.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_images(path: Path) -> tuple[Path, list[str]]:
    """The root folder, and the sorted relative paths of all images below it (of one image if `path` is a file).

    Raises UserError if there are no images.
    """
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; pass an image, or a folder of images")
    names = sorted(files_below(path, READABLE_SUFFIXES))
    if not names:
        raise UserError(f"{path}: no images in this folder; looked for {', '.join(sorted(READABLE_SUFFIXES))}")
    return path, names


def _check_output_folder(out: Path, root: Path, names: list[str]) -> None:
    """Raise UsageError if results would be written among the input images: the next run would segment them."""
    inputs = root.resolve()
    for folder in {(out / name).parent for name in names}:
        if folder.resolve().is_relative_to(inputs):
            raise UsageError(f"--out {out}: would write into {root}, among the images; name another folder")


@contextmanager
def _name_errors(out: Path) -> Iterator[None]:
    """Turn errors caused by one file's name into UserError. Others, such as a full disk, affect all images."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
            raise
        raise UserError(f"its results cannot be written into {out} ({error.strerror}); rename the file") from None
