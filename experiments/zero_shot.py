"""A trained student that segments any image with any class names. The command `predict` uses it, too."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps

from data_cache.datasets.decode import DAMAGED, decode_image
from data_cache.errors import UsageError, UserError, one_line
from data_cache.messages import count, first_names, printable
from data_cache.options import check_option
from data_cache.paths import cache_folder
from data_cache.system.devices import resolve_device
from experiments.config import PredictConfig
from experiments.segmentation import Segmentation
from experiments.vocabulary import check_class_names, parse_names, vocabulary_for_names
from trainer.checkpoint import Checkpoint, load
from trainer.predictor import Predictor, check_aspect_ratio
from trainer.segmenter import Vocabulary, labels_and_scores
from viewer.cards import card, table

ImageLike = str | os.PathLike[str] | Image.Image | UInt8[np.ndarray, "height width 3"]
"""A file, a PIL image, or an array of 8-bit RGB values."""
UNNAMED = "image"
"""The name of an image that is no file."""


class ZeroShotSegmenter:
    """A trained student that segments images with any class names.

    Args:
        checkpoint: the student.
        sliding: average the logits of overlapping square windows instead of one pass over the whole image.
        prompts: a prompt set for all names; None is the one used in training.
        clip: the CLIP used in training, if it has moved. It encodes names that the student does not know.
        clip_weights: weights of `clip`.

    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        sliding: bool = False,
        prompts: str | None = None,
        clip: str | None = None,
        clip_weights: str | None = None,
    ) -> None:
        self.checkpoint, self.sliding, self.prompts = checkpoint, sliding, prompts
        self._clip, self._clip_weights = clip, clip_weights
        self._vocabularies: dict[tuple[str, ...] | None, Vocabulary] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the training dataset."""
        return self.checkpoint.split.classes

    @property
    def unseen(self) -> tuple[str, ...]:
        """Those of `classes` that had no labels in training."""
        return self.checkpoint.split.unseen

    def predict(
        self, image: ImageLike, classes: str | Sequence[str] | None = None, gamma: float | None = None
    ) -> Segmentation:
        """Segment an image at its own resolution.

        Args:
            image: a file, a PIL image, or an array of 8-bit RGB values of shape (height, width, 3).
            classes: the class names to choose from: a list, a string such as "frisbee,tree,grass", or a file with one
                name per line. None selects the training classes.
            gamma: added to the logits of classes that had no labels in training; None is the default of `predict`.

        Raises:
            UserError: the image cannot be read or is too long a strip, or CLIP's text tower cannot be loaded.
            UsageError: the class names are invalid, CLIP cannot distinguish them, or the image is of another type.

        """
        check_option(PredictConfig, "gamma", gamma)
        vocabulary, gamma = self.vocabulary(classes), self.checkpoint.gamma(gamma)
        name, pixels = _read(image)
        logits = Predictor(self.checkpoint, self.sliding, vocabulary).logits(pixels)
        label_map, scores = labels_and_scores(logits, vocabulary.labelled, gamma, pixels.shape[:2])
        return Segmentation(name, pixels, label_map, scores, vocabulary)

    def vocabulary(self, classes: str | Sequence[str] | None = None) -> Vocabulary:
        """The text features of class names, which are encoded once. Raises as `predict` does."""
        if isinstance(classes, str):
            names = parse_names(classes)
        else:
            names = None if classes is None else check_class_names(classes, "classes")
        if names not in self._vocabularies:
            self._vocabularies[names] = vocabulary_for_names(
                self.checkpoint, names, cache_folder(), self.prompts, self._clip, self._clip_weights
            )
        return self._vocabularies[names]

    def __repr__(self) -> str:
        return printable(f"{self._student}: {len(self.classes)} classes, unseen: {', '.join(self.unseen) or 'none'}")

    @property
    def _student(self) -> str:
        config, step = self.checkpoint.config, self.checkpoint.step
        setting = ", transductive" if config.transductive else ""
        return f"{config.arch} ({config.encoder}) at {self.checkpoint.size} px after {count(step, 'update')}{setting}"

    def _repr_html_(self) -> str:
        about = self.checkpoint.card
        rows = [
            ("student", self._student),
            ("classes", f"{len(self.classes)}: {first_names(self.classes, 12)}"),
            ("unseen", ", ".join(self.unseen) or "none"),
            ("dataset", about["dataset"]["name"]),
            ("text features", f"{about['clip']['model']}, prompts {self.prompts or about['prompts']['name']}"),
        ]
        return card("segmenter", table(rows))


def load_segmenter(
    run: str | os.PathLike[str],
    device: str = "auto",
    sliding: bool = False,
    prompts: str | None = None,
    clip: str | None = None,
    clip_weights: str | None = None,
) -> ZeroShotSegmenter:
    """Load the newest checkpoint of a run. Arguments are those of `ZeroShotSegmenter`.

    Raises UserError if there is no checkpoint or it is damaged, and UsageError if there is no such device.
    """
    checkpoint = load(Path(run).expanduser(), resolve_device(device))
    return ZeroShotSegmenter(checkpoint, sliding, prompts, clip, clip_weights)


def _read(image: ImageLike) -> tuple[str, UInt8[np.ndarray, "height width 3"]]:
    """The name of an image, and its upright RGB pixels."""
    if isinstance(image, Image.Image):
        return Path(getattr(image, "filename", "") or UNNAMED).name, _pixels_of(image)
    if isinstance(image, np.ndarray):
        return UNNAMED, _checked_array(image)
    if not isinstance(image, str | os.PathLike):
        kind = type(image).__name__
        raise UsageError(f"image: {kind} is not an image; pass a path, a PIL image, or an array of 8-bit RGB values")
    path = Path(image).expanduser()
    pixels = decode_image(path)
    check_aspect_ratio(*pixels.shape[:2], f"{path}: ")
    return path.name, pixels


def _pixels_of(picture: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if picture.mode == "F" or picture.mode.startswith("I"):
        raise UsageError(f"image: a PIL image of mode {picture.mode}; scale it to 8 bits, or pass the path of its file")
    try:
        return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except DAMAGED as error:
        raise UserError(f"image: cannot be read ({one_line(error)})") from None


def _checked_array(array: Shaped[np.ndarray, "..."]) -> UInt8[np.ndarray, "height width 3"]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise UsageError(
            f"image: an array of {array.dtype} of shape {array.shape}; pass uint8 RGB of shape (height, width, 3)"
        )
    return np.ascontiguousarray(array)
