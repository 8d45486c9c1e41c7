"""Segments any images with any class names."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_cache.callbacks import ProgressBar
from data_cache.content import indistinguishable_warnings
from data_cache.datasets.decode import decode_image
from data_cache.datasets.pairing import files_below, is_text
from data_cache.datasets.pairing_notes import READABLE_SUFFIXES, skipped_images
from data_cache.errors import UsageError, UserError
from data_cache.paths import PREDICTED, cache_folder
from data_cache.system.devices import resolve_device
from experiments.areas import OVERLAY, ResultWriter, SegmentedImage
from experiments.config import PredictConfig
from experiments.vocabulary import parse_names, vocabulary_for_names
from trainer.checkpoint import Checkpoint, load, run_of
from trainer.predictor import Predictor, check_aspect_ratio
from trainer.segmenter import Vocabulary


@dataclass(frozen=True)
class PredictReport:
    """The segmented images, and the reasons why others failed."""

    out: Path
    settings: Mapping[str, Any]
    segmented: tuple[SegmentedImage, ...]
    failures: Mapping[str, str]
    warnings: tuple[str, ...] = ()

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
            "areas": {image.file: image.areas(1) for image in self.segmented},
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


def predict(config: PredictConfig, progress_bar: ProgressBar) -> PredictReport:
    """Segment images and write the files of `ResultWriter.write` for each.

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
    checkpoint = load(config.checkpoint, resolve_device(config.device))
    vocabulary = vocabulary_for_names(
        checkpoint, classes, cache_folder(), config.prompts, config.clip, config.clip_weights
    )
    predictor = Predictor(checkpoint, config.sliding, vocabulary)
    writer = ResultWriter(out, vocabulary, _settings(config, checkpoint, vocabulary))
    segmented, failures = [], {}
    with progress_bar("segmenting", len(names), "images") as advance:
        for name in names:
            try:
                image = _read(root, name)
                with _name_errors(out):
                    segmented.append(writer.write(root / name, name, image, predictor(image).at(config.gamma)))
            except UserError as error:
                if config.images.is_file():
                    raise
                failures[name if is_text(name) else ascii(name)] = str(error)
            advance(1)
    warnings = indistinguishable_warnings(vocabulary.split.classes, vocabulary.text.numpy(force=True))
    if config.images.is_dir():
        warnings.append(skipped_images(files_below(root), READABLE_SUFFIXES, root))
    return PredictReport(out, writer.settings, tuple(segmented), failures, tuple(filter(None, warnings)))


def _settings(config: PredictConfig, checkpoint: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "checkpoint": str(config.checkpoint),
        "step": checkpoint.step,
        "size": checkpoint.size,
        "gamma": config.gamma,
        "sliding": config.sliding,
        "prompts": config.prompts or checkpoint.card["prompts"]["name"],
        "clip": checkpoint.card["clip"]["model"],
        "classes": list(vocabulary.split.classes),
    }


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


def _read(root: Path, name: str) -> UInt8[np.ndarray, "height width 3"]:
    if not is_text(name):
        raise UserError("its name is not valid text; rename the file")
    image = decode_image(root / name)
    check_aspect_ratio(*image.shape[:2], f"{root / name}: ")
    return image
