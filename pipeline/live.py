"""The teacher in the training loop: asks CLIP and clusters anew for each batch, where a cache would be read."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int, Shaped, UInt8

from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.source import photographs
from data_cache.splits import Split
from data_cache.store import Cache
from data_cache.views import View, replay_image, replay_label
from pipeline.clip import FrozenCLIP
from pipeline.encode import DECODERS
from pipeline.masks import Masker
from pipeline.weights import CLIPSource


@dataclass(frozen=True)
class Answer:
    """What CLIP says of some views, and the masks clustered from it."""

    cls: Float16[np.ndarray, "view channel"]
    dense: Float16[np.ndarray, "view y x channel"]
    label: Shaped[np.ndarray, "view y x"]


@dataclass(frozen=True)
class LiveTeacher:
    """Answers for views of a dataset as stage 1 does, with the geometry and the settings of a cache.

    Args:
        clip: the teacher.
        dataset: its photographs.
        masker: how masks are clustered.
        box, flip: geometry of every view.
        batch: views a forward. Rounding depends on it, so an exact comparison needs equal ones.

    """

    clip: FrozenCLIP
    dataset: Dataset
    masker: Masker
    box: Int[np.ndarray, "image view 4"]
    flip: Bool[np.ndarray, "image view"]
    batch: int

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels, as `trainer.data.TeacherSource` promises them."""
        answer = self.ask(image, view)
        return answer.cls, answer.label

    def ask(self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]) -> Answer:
        """Everything about some views. Raises UserError if an image cannot be read."""
        with ThreadPoolExecutor(DECODERS) as pool:
            shown = list(pool.map(self._show, image, view))
        parts = [
            self.clip.encode(np.stack([pixels for pixels, _ in shown[start : start + self.batch]]))
            for start in range(0, len(shown), self.batch)
        ]
        cls, dense = (np.concatenate([getattr(part, name) for part in parts]) for name in ("cls", "dense"))
        return Answer(cls, dense, self.masker(dense, [label for _, label in shown])[0])

    def _show(
        self, image: int, view: int
    ) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"] | None]:
        pixels, label = self.dataset.load(int(image))
        geometry, size = View.stored(self.box[image, view], self.flip[image, view]), self.clip.image_size
        return replay_image(pixels, geometry, size), None if label is None else replay_label(label, geometry, size)


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
        UserError: the photographs or the CLIP are not those of the cache.

    """
    fingerprint, recorded = cache.fingerprint, cache.attributes["recorded"]
    teacher = same_clip(fingerprint["clip"], recorded.get("clip"), clip, weights, device)
    dataset = photographs(cache, root)
    loaded, about = cache.load(masks), cache.mask_attributes(masks)
    masker = masker_of(cache, about, dataset.classes, str(device))
    return LiveTeacher(teacher, dataset, masker, loaded.box, loaded.flip, teacher.batch)


def masker_of(
    cache: Cache, about: Mapping[str, Any], classes: tuple[str, ...], device: str = "cpu", kmeans: str | None = None
) -> Masker:
    """The clustering a mask set's attributes describe, by their backend, or by `kmeans`."""
    if kmeans is None:
        # FAISS on a GPU and elsewhere agree; here there may be no GPU
        kmeans = {"faiss-gpu": "auto"}.get(about["backend"], about["backend"])
    split, recipe = Split(classes, tuple(about["unseen"])), (about["threshold"], about["updates"])
    return Masker(split, cache.layout.grid, tuple(about["windows"]), *recipe, kmeans, device)


def same_clip(
    teacher: Mapping[str, Any],
    origin: Mapping[str, str] | None,
    clip: str | None,
    weights: str | None,
    device: torch.device,
) -> FrozenCLIP:
    """The CLIP of a fingerprint: from where it was (`origin`), or as named. Raises UserError if it is another one."""
    origin = origin or {}
    clip = clip or origin.get("clip") or teacher["model"]
    weights = weights or origin.get("weights") or ""
    found = FrozenCLIP(CLIPSource(clip, weights, teacher["image_size"]), teacher["precision"], device)
    if found.weights_hash != teacher["weights_sha256"]:
        raise UserError(
            f"--clip {clip}{f' --clip-weights {weights}' if weights else ''}: not the CLIP that was asked before "
            f"({teacher['model']}, weights {teacher['weights_sha256'][:12]}); pass that one"
        )
    return found
