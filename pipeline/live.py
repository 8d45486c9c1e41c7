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
from pipeline.teacher.protocol import Teacher
from pipeline.teacher.rebuild import rebuild_teacher


@dataclass(frozen=True)
class ViewFeatures:
    """CLIP's features of some views, and the masks clustered from them."""

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

    """

    clip: Teacher
    dataset: Dataset
    masker: Masker
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    batch: int

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels, as specified by `trainer.teacher.TeacherSource`."""
        features = self.features(image, view)
        return features.cls, features.label

    def features(self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]) -> ViewFeatures:
        """Features and masks of some views. Raises UserError if an image cannot be read."""
        with ThreadPoolExecutor(DECODERS) as pool:
            crops = list(pool.map(self._crop, image, view))
        parts = [
            self.clip.encode(np.stack([pixels for pixels, _ in crops[start : start + self.batch]]))
            for start in range(0, len(crops), self.batch)
        ]
        cls, dense = (np.concatenate([getattr(part, name) for part in parts]) for name in ("cls", "dense"))
        return ViewFeatures(cls, dense, self.masker(dense, [label for _, label in crops])[0])

    def _crop(
        self, image: int, view: int
    ) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"] | None]:
        pixels, label = self.dataset.load(int(image))
        geometry, size = View.stored(self.box[image, view], self.flip[image, view]), self.clip.image_size
        return crop_image(pixels, geometry, size), crop_label(label, geometry, size)


def live_teacher(
    cache: Cache,
    masks: str,
    root: Path | None,
    device: torch.device,
    clip: str | None = None,
    weights: str | None = None,
) -> LiveTeacher:
    """A live teacher with the settings of a finished cache and one of its mask sets.

    Raises:
        UserError: the images or the CLIP are not those of the cache.

    """
    fingerprint, recorded = cache.fingerprint, cache.attributes["recorded"]
    check_resampling(cache.path, fingerprint)
    teacher = rebuild_teacher(fingerprint["clip"], recorded.get("clip"), clip, weights, device)
    dataset = open_source_dataset(cache, root)
    loaded, attributes = cache.load(masks), cache.mask_attributes(masks)
    masker = Masker.from_attributes(attributes, dataset.classes, cache.layout.grid, str(device))
    return LiveTeacher(teacher, dataset, masker, loaded.box, loaded.flip, teacher.batch)
