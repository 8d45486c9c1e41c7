"""CLIP's own training-free segmentation, the least a trained student must beat: dense tokens times text."""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8

from data_cache.splits import Split
from data_cache.views import replay_image, whole
from pipeline.clip import FrozenCLIP
from pipeline.prompts import prompts_for
from trainer.config import TrainConfig
from trainer.evaluate import favour_unseen, winners
from trainer.plm import pixel_logits


@dataclass(frozen=True)
class DenseCLIP:
    """Names each token of the whole image by the most similar class name, and each pixel by interpolation.

    Args:
        clip: the teacher.
        split: the classes, of which none is unseen to CLIP.
        text: their L2-normalised text features.
        gamma: added to the logits (cosine / tau, as a student's) of the split's unseen classes.

    """

    clip: FrozenCLIP
    split: Split
    text: Float[np.ndarray, "class channel"] = field(repr=False)
    gamma: float = 0.0

    @classmethod
    def of(cls, clip: FrozenCLIP, split: Split, dataset: str) -> "DenseCLIP":
        """With the text features of a dataset's default prompts, and gamma 0."""
        return cls(clip, split, clip.encode_text(split.classes, prompts_for(dataset)[1]))

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
        """Class ids at the image's own size."""
        view = replay_image(image, whole(*image.shape[:2]), self.clip.image_size)
        dense = torch.from_numpy(self.clip.encode(view[None]).dense[0].astype(np.float32)).permute(2, 0, 1)
        logits = pixel_logits(dense, torch.from_numpy(self.text), "cosine", TrainConfig.tau)
        return winners(favour_unseen(logits, self.split, self.gamma), image.shape[:2])
