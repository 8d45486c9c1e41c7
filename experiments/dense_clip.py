"""CLIP's own training-free segmentation, the least a trained student must beat: dense tokens times text."""

import numpy as np
import torch
from jaxtyping import UInt8

from data_cache.splits import Split
from data_cache.views import replay_image, whole
from pipeline.clip import FrozenCLIP
from pipeline.prompts import Prompts
from trainer.config import TrainConfig
from trainer.contest import Contest, contest
from trainer.plm import pixel_logits
from trainer.words import Words


class DenseCLIP:
    """Names each token of the whole image by the most similar class name, and each pixel by interpolation.

    Args:
        clip: the teacher.
        split: the classes, of which none is unseen to CLIP. Gamma, if any, goes to the split's unseen ones.
        dataset: whose default prompts ask for them.

    """

    def __init__(self, clip: FrozenCLIP, split: Split, dataset: str) -> None:
        self.clip = clip
        prompts = Prompts.of(dataset)
        text = clip.encode_text(prompts.words(dataset, split.classes), prompts.templates)
        self.words = Words(split, torch.from_numpy(text), split.is_seen)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> Contest:
        """The best class of each kind at the image's own pixels; logits are cosines / tau, as a student's."""
        view = replay_image(image, whole(*image.shape[:2]), self.clip.image_size)
        dense = torch.from_numpy(self.clip.encode(view[None]).dense[0].astype(np.float32)).permute(2, 0, 1)
        logits = pixel_logits(dense, self.words.text, "cosine", TrainConfig.tau)
        return contest(logits, self.words.familiar, image.shape[:2])
