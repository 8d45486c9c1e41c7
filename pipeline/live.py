"""The teacher in the training loop: runs CLIP and k-means on each batch instead of reading a cache."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int, Shaped, UInt8

from data_cache.datasets.base import Dataset
from data_cache.reader import Cache
from data_cache.sample import crop_image, crop_label
from data_cache.source_dataset import open_source_dataset
from data_cache.views import View, check_resampling
from pipeline.encode import DECODERS
from pipeline.masks.masker import Masker
from pipeline.masks.model import ModelSettings, TokenModel
from pipeline.teacher.protocol import Teacher
from pipeline.teacher.rebuild import rebuild_teacher


@dataclass(frozen=True)
class ViewFeatures:
    """CLS tokens of some views, the masks of the views, and the dense tokens that these are clustered from."""

    cls: Float16[np.ndarray, "view channel"]
    dense: Float16[np.ndarray, "view y x channel"]
    label: Shaped[np.ndarray, "view y x"]


@dataclass(frozen=True)
class LiveTeacher:
    """Computes features and masks of views as stage 1 does, with the geometry and the settings of a cache.

    Args:
        clip: the teacher.
        dataset: the images.
        masker: the clustering.
        box, flip: geometry of every view.
        batch: views per forward pass. Rounding depends on it, so an exact comparison needs equal batches.
        model: the vision model whose tokens are clustered, if it is not the teacher.

    """

    clip: Teacher
    dataset: Dataset
    masker: Masker
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    batch: int
    model: TokenModel | None = None

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels, as specified by `trainer.teacher.TeacherSource`."""
        features = self.features(image, view)
        return features.cls, features.label

    def features(self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]) -> ViewFeatures:
        """Features and masks of some views. Raises UserError if an image cannot be read."""
        with ThreadPoolExecutor(DECODERS) as pool:
            crops = list(pool.map(self._crops, image, view))
        parts = [
            self.clip.encode(np.stack([pixels for pixels, *_ in crops[start : start + self.batch]]))
            for start in range(0, len(crops), self.batch)
        ]
        cls, dense = (np.concatenate([getattr(part, name) for part in parts]) for name in ("cls", "dense"))
        if self.model:
            dense = self.model.tokens(np.stack([pixels for _, pixels, _ in crops]))
        return ViewFeatures(cls, dense, self.masker(dense, [label for *_, label in crops])[0])

    def _crops(
        self, image: int, view: int
    ) -> tuple[
        UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "side side 3"], UInt8[np.ndarray, "side side"] | None
    ]:
        """The input of the teacher, and the input and the label map of the model whose tokens are clustered."""
        pixels, label = self.dataset.load(int(image))
        geometry, size = View.stored(self.box[image, view], self.flip[image, view]), self.clip.image_size
        side, crop = (self.model.image_size if self.model else size), crop_image(pixels, geometry, size)
        return crop, crop if side == size else crop_image(pixels, geometry, side), crop_label(label, geometry, side)


def live_teacher(
    cache: Cache,
    masks: str,
    root: Path | None,
    device: torch.device,
    clip: str | None = None,
    weights: str | None = None,
    masks_from: str | None = None,
) -> LiveTeacher:
    """A live teacher with the settings of a finished cache and one of its mask sets.

    `clip`, `weights` and `masks_from` say where the models are now, if they have moved.

    Raises:
        UserError: the images, the CLIP or another model are not those of the cache.

    """
    fingerprint, recorded = cache.fingerprint, cache.attributes["recorded"]
    check_resampling(cache.path, fingerprint)
    teacher = rebuild_teacher(fingerprint["clip"], recorded.get("clip"), clip, weights, device)
    dataset = open_source_dataset(cache, root)
    loaded, owner = cache.load(masks), cache.tokens_owner(masks)
    model = ModelSettings.of_masks(cache.mask_attributes(owner), masks_from, device).load() if owner else None
    masker = Masker.of_masks(cache, masks, str(device))
    return LiveTeacher(teacher, dataset, masker, loaded.box, loaded.flip, teacher.batch, model)
