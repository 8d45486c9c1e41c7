"""Segments a person's own photographs with any vocabulary."""

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
from data_cache.paths import cache_folder
from data_cache.system.devices import resolve_device
from experiments.areas import Results, Segmented
from experiments.config import PredictConfig
from experiments.vocabulary import names_of, vocabulary_for_names
from trainer.checkpoint import Checkpoint, load
from trainer.predictor import Predictor, check_aspect_ratio
from trainer.segmenter import Vocabulary


@dataclass(frozen=True)
class Album:
    """What came out of all photographs: areas, and why some failed."""

    out: Path
    settings: Mapping[str, Any]
    segmented: tuple[Segmented, ...]
    failures: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: of each photograph the classes that are in it."""
        return {
            "out": str(self.out),
            "photographs": len(self.segmented) + len(self.failures),
            "done": len(self.segmented),
            "failed": len(self.failures),
            "failures": dict(self.failures),
            "settings": dict(self.settings),
            "areas": {one.file: one.areas(1) for one in self.segmented},
        }

    def __str__(self) -> str:
        """The areas of a single photograph; else how many there are."""
        if len(self.segmented) == 1:
            return str(self.segmented[0])
        return f"{self.out}: {len(self.segmented)} of {len(self.segmented) + len(self.failures)} photographs segmented"

    def check(self) -> None:
        """Raise UserError if a photograph failed."""
        if self.failures:
            total = len(self.segmented) + len(self.failures)
            raise UserError(f"{len(self.failures)} of {total} photographs failed; the others are in {self.out}")


def predict(config: PredictConfig, progress_bar: ProgressBar) -> Album:
    """Segment photographs and write, for each, what `Results.write` says.

    Of a folder, images that cannot be read are left out and reported.

    Raises:
        UserError, UsageError: no such checkpoint, photographs or classes, or a CLIP that cannot encode them.

    """
    root, names = photographs(config.photographs)
    _refuse_own_results(config, root, names)
    wanted = None if config.classes is None else names_of(config.classes)
    student = load(config.checkpoint, resolve_device(config.device))
    vocabulary = vocabulary_for_names(student, wanted, cache_folder(), config.prompts, config.clip, config.clip_weights)
    segments = Predictor(student, config.sliding, vocabulary)
    results = Results(config.out, vocabulary, _settings(config, student, vocabulary))
    done, failures = [], {}
    with progress_bar("segmenting", len(names), "photographs") as advance:
        for name in names:
            try:
                image = _read(root, name)
                with _only_this_one(config.out):
                    done.append(results.write(root / name, name, image, segments(image).at(config.gamma)))
            except UserError as error:
                if config.photographs.is_file():
                    raise
                failures[name if is_text(name) else ascii(name)] = str(error)
            advance(1)
    warnings = indistinguishable_warnings(vocabulary.split.classes, vocabulary.text.numpy(force=True))
    if config.photographs.is_dir():
        warnings.append(skipped_images(files_below(root), READABLE_SUFFIXES, root))
    return Album(config.out, results.settings, tuple(done), failures, tuple(filter(None, warnings)))


def _settings(config: PredictConfig, student: Checkpoint, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "checkpoint": str(config.checkpoint),
        "step": student.step,
        "size": student.size,
        "gamma": config.gamma,
        "sliding": config.sliding,
        "prompts": config.prompts or student.card["prompts"]["name"],
        "clip": student.card["clip"]["model"],
        "classes": list(vocabulary.split.classes),
    }


def photographs(path: Path) -> tuple[Path, list[str]]:
    """The folder and the photographs in it, in order: all pictures below a folder, or the one that is named.

    Raises UserError if there are none.
    """
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; pass a photograph, or a folder of them")
    names = sorted(files_below(path, READABLE_SUFFIXES))
    if not names:
        raise UserError(f"{path}: no photographs in this folder; looked for {', '.join(sorted(READABLE_SUFFIXES))}")
    return path, names


def _refuse_own_results(config: PredictConfig, root: Path, names: list[str]) -> None:
    """Raise UsageError if results would lie among the photographs: the next run would segment them."""
    if config.photographs.is_file():
        return
    here = root.resolve()
    for folder in {(config.out / name).parent for name in names}:
        if folder.resolve().is_relative_to(here):
            raise UsageError(f"--out {config.out}: would write into {root}, among the photographs; name another folder")


@contextmanager
def _only_this_one(out: Path) -> Iterator[None]:
    """Turn what a result's name alone is to blame for into UserError; a full disk is everybody's."""
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
