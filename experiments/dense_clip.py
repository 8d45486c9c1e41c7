"""Training-free segmentation by CLIP alone (dense tokens times text features), the baseline of every student."""

import numpy as np
import torch
from jaxtyping import UInt8

from data_cache.sample import crop_image
from data_cache.splits import Split
from data_cache.views import whole
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.protocol import Teacher
from trainer.config import TrainConfig
from trainer.losses.pixel import pixel_logits
from trainer.segmenter import TopSeenUnseen, Vocabulary, top_seen_unseen


class DenseCLIP:
    """Assigns each pixel the class whose text feature is most similar to the interpolated dense tokens.

    Args:
        clip: the teacher.
        split: the classes; gamma, if any, is added to the unseen ones.
        dataset: its default prompts are used.

    """

    def __init__(self, clip: Teacher, split: Split, dataset: str) -> None:
        self.clip = clip
        prompts = Prompts.default_for(dataset)
        text = clip.encode_text(prompts.class_names(dataset, split.classes), prompts.templates)
        self.vocabulary = Vocabulary(split, torch.from_numpy(text), split.is_seen)

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> TopSeenUnseen:
        """The top seen and unseen class at the image's own resolution. Logits are cosines / tau, as for a student."""
        view = crop_image(image, whole(*image.shape[:2]), self.clip.image_size)
        dense = torch.from_numpy(self.clip.encode(view[None]).dense[0].astype(np.float32)).permute(2, 0, 1)
        logits = pixel_logits(dense, self.vocabulary.text, "cosine", TrainConfig.tau)
        return top_seen_unseen(logits, self.vocabulary.labelled, image.shape[:2])
