"""Segments a person's own photographs with any vocabulary."""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_cache.datasets.decode import decode_image
from data_cache.datasets.folder import SUFFIXES
from data_cache.datasets.pairing import files_below, is_text
from data_cache.devices import resolve_device
from data_cache.errors import UsageError, UserError
from data_cache.places import cache_folder
from experiments.areas import Results, Segmented
from experiments.stages import Progress
from experiments.vocabulary import names_of, vocabulary
from trainer.checkpoint import Checkpoint, load
from trainer.evaluate import GAMMA, Predictor
from trainer.words import Words

LONGEST = 16
"""Greatest ratio of a photograph's sides: the student sees it with its short side at the training size."""


@dataclass(frozen=True)
class Asked:
    """What `predict` is asked for; names and defaults are those of the command line."""

    checkpoint: Path
    photographs: Path
    classes: str | None = None
    out: Path = Path("runs/predict")
    gamma: float = GAMMA
    sliding: bool = False
    prompts: str | None = None
    clip: str | None = None
    clip_weights: str | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Album:
    """What came out of all photographs: areas, and why some failed."""

    out: Path
    settings: Mapping[str, Any]
    segmented: tuple[Segmented, ...]
    failures: Mapping[str, str]

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


def predict(asked: Asked, progress: Progress) -> Album:
    """Segment photographs and write, for each, what `Results.write` says.

    Of a folder, those that cannot be read are left out and told of.

    Raises:
        UserError, UsageError: no such checkpoint, photographs or classes, or a CLIP that cannot be asked for them.

    """
    root, names = photographs(asked.photographs)
    _refuse_own_results(asked, root, names)
    wanted = None if asked.classes is None else names_of(asked.classes)
    student = load(asked.checkpoint, resolve_device(asked.device))
    words = vocabulary(student, wanted, cache_folder(), asked.prompts, asked.clip, asked.clip_weights)
    segments = Predictor(student, asked.sliding, words)
    results = Results(asked.out, words, _settings(asked, student, words))
    done, failures = [], {}
    with progress("segmenting", len(names), "photographs") as advance:
        for name in names:
            try:
                image = _read(root, name)
                with _only_this_one(asked.out):
                    done.append(results.write(root / name, name, image, segments(image).at(asked.gamma)))
            except UserError as error:
                if asked.photographs.is_file():
                    raise
                failures[name if is_text(name) else ascii(name)] = str(error)
            advance(1)
    return Album(asked.out, results.settings, tuple(done), failures)


def _settings(asked: Asked, student: Checkpoint, words: Words) -> dict[str, Any]:
    return {
        "checkpoint": str(asked.checkpoint),
        "step": student.step,
        "size": student.size,
        "gamma": asked.gamma,
        "sliding": asked.sliding,
        "prompts": asked.prompts or student.card["prompts"]["name"],
        "clip": student.card["clip"]["model"],
        "classes": list(words.split.classes),
    }


def photographs(path: Path) -> tuple[Path, list[str]]:
    """The folder and the photographs in it, in order: all pictures below a folder, or the one that is named.

    Raises UserError if there are none.
    """
    if path.is_file():
        return path.parent, [path.name]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; pass a photograph, or a folder of them")
    names = sorted(files_below(path, SUFFIXES))
    if not names:
        raise UserError(f"{path}: no photographs in this folder; looked for {', '.join(sorted(SUFFIXES))}")
    return path, names


def _refuse_own_results(asked: Asked, root: Path, names: list[str]) -> None:
    """Raise UsageError if results would lie among the photographs: the next run would segment them."""
    if asked.photographs.is_file():
        return
    here = root.resolve()
    for folder in {(asked.out / name).parent for name in names}:
        if folder.resolve().is_relative_to(here):
            raise UsageError(f"--out {asked.out}: would write into {root}, among the photographs; name another folder")


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
    short, long = sorted(image.shape[:2])
    if long > LONGEST * short:
        raise UserError(f"{root / name}: {long} x {short} pixels are too long a strip; cut it to at most {LONGEST}:1")
    return image
