"""The interface of a segmenter: its vocabulary, and a prediction for an image that serves every gamma."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.content import text_problems
from data_cache.splits import Split

CLASS_CHUNK = 16
"""Classes resized at a time: all classes of COCO at a photo's own size would take gigabytes."""


@dataclass(frozen=True)
class Vocabulary:
    """Class names with their text features.

    Args:
        split: the names, and which of them metrics count as seen and unseen.
        text: one feature per name.
        labelled: which names had labels in training; gamma is added to the others. On the training dataset these are
            the seen classes, on another dataset those with the same meaning (`data_cache.splits.labelled_in_training`).
        unknown: names with words that CLIP never learned.

    """

    split: Split
    text: Float[Tensor, "class channel"]
    labelled: Bool[np.ndarray, "class"]
    unknown: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """What is wrong with the text features, one sentence per problem."""
        return text_problems(self.split.classes, self.text.numpy(force=True), self.unknown)

    @property
    def transferred(self) -> bool:
        """Whether labelled classes differ from seen classes, as on a dataset other than the training dataset."""
        return not np.array_equal(self.labelled, self.split.is_seen)


@dataclass(frozen=True)
class TopSeenUnseen:
    """For each pixel the best labelled and the best unlabelled class, and the margin of the latter's logit.

    Gamma is added to the logits of all unlabelled classes alike, so it never changes which of them is the best: one
    prediction serves every gamma. The margin is infinite if all classes are of one kind.
    """

    labelled: Int[np.ndarray, "height width"]
    unlabelled: Int[np.ndarray, "height width"]
    margin: Float[np.ndarray, "height width"]

    def at(self, gamma: float) -> Int[np.ndarray, "height width"]:
        """The class with the greatest logit after gamma is added to the unlabelled classes."""
        return np.where(self.margin + gamma > 0, self.unlabelled, self.labelled)


class Segmenter(Protocol):
    """Anything that predicts a class for every pixel of an image."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes to choose from."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> TopSeenUnseen:
        """Predict at the image's own resolution."""


@torch.inference_mode()
def top_seen_unseen(
    logits: Float[Tensor, "class y x"], labelled: Bool[np.ndarray, "class"], size: tuple[int, int]
) -> TopSeenUnseen:
    """The best class of each kind at each pixel, after resizing the logits bilinearly to `size`."""
    seen, seen_logit = _best_class(logits, np.flatnonzero(labelled), size)
    unseen, unseen_logit = _best_class(logits, np.flatnonzero(~labelled), size)
    return TopSeenUnseen(seen.cpu().numpy(), unseen.cpu().numpy(), (unseen_logit - seen_logit).cpu().numpy())


@torch.inference_mode()
def confidence(
    logits: Float[Tensor, "class y x"], labelled: Bool[np.ndarray, "class"], gamma: float, size: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Softmax probability of the best class at each pixel, with gamma added to the unlabelled classes.

    The logits are resized bilinearly to `size`, as in `top_seen_unseen`.
    """
    added = gamma * torch.from_numpy(~labelled).to(logits)[:, None, None]
    best = torch.full(size, -torch.inf, device=logits.device)
    total = torch.zeros(size, device=logits.device)
    for start in range(0, len(logits), CLASS_CHUNK):
        chunk = logits[start : start + CLASS_CHUNK] + added[start : start + CLASS_CHUNK]
        resized = F.interpolate(chunk[None], size, mode="bilinear", align_corners=False)[0]
        higher = torch.maximum(best, resized.amax(dim=0))
        # relative to the best logit so far, so that no exponential overflows
        total = total * (best - higher).exp_() + resized.sub_(higher).exp_().sum(dim=0)
        best = higher
    return total.reciprocal_().cpu().numpy()


def _best_class(
    logits: Float[Tensor, "class y x"], ids: Int[np.ndarray, "id"], size: tuple[int, int]
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
    best_logit = torch.full(size, -torch.inf, device=logits.device)
    best_class = torch.zeros(size, dtype=torch.long, device=logits.device)
    for start in range(0, len(ids), CLASS_CHUNK):
        chunk = torch.from_numpy(ids[start : start + CLASS_CHUNK]).to(logits.device)
        logit, index = F.interpolate(logits[chunk][None], size, mode="bilinear", align_corners=False)[0].max(dim=0)
        better = logit > best_logit
        best_logit, best_class = torch.where(better, logit, best_logit), torch.where(better, chunk[index], best_class)
    return best_class, best_logit
