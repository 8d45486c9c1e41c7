"""What a segmenter is: the classes it chooses from, and its answer for an image, from which every gamma follows."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.splits import Split

CLASSES_AT_ONCE = 16


@dataclass(frozen=True)
class Vocabulary:
    """Class names with their text features.

    Args:
        split: the names, and which of them metrics count as seen and unseen.
        text: one feature per name.
        labelled: which names had labels in training; gamma is added to the others. On the training dataset these are
            the seen classes, on another one those with the same meaning (`data_cache.splits.labelled_in_training`).

    """

    split: Split
    text: Float[Tensor, "class channel"]
    labelled: Bool[np.ndarray, "class"]

    @property
    def transferred(self) -> bool:
        """Whether seen and labelled differ, as they do for the names of another dataset than the training's."""
        return not np.array_equal(self.labelled, self.split.is_seen)


@dataclass(frozen=True)
class TopSeenUnseen:
    """Two class ids per pixel and the lead (logit minus logit) of the unlabelled one; infinite if one kind is missing.

    Gamma is added to the logits of all classes without labels in training alike, so it never changes which of them is
    the best: one prediction serves every gamma.
    """

    labelled: Int[np.ndarray, "height width"]
    unlabelled: Int[np.ndarray, "height width"]
    lead: Float[np.ndarray, "height width"]

    def at(self, gamma: float) -> Int[np.ndarray, "height width"]:
        """The class of the greatest logit once gamma is added to those of the unlabelled classes."""
        return np.where(self.lead + gamma > 0, self.unlabelled, self.labelled)


class Segmenter(Protocol):
    """Anything that predicts a class for every pixel of an image."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes it chooses from."""

    def __call__(self, image: UInt8[np.ndarray, "height width 3"]) -> TopSeenUnseen:
        """The best labelled and the best unlabelled class at the image's own pixels."""


@torch.inference_mode()
def top_seen_unseen(
    logits: Float[Tensor, "class y x"], labelled: Bool[np.ndarray, "class"], size: tuple[int, int]
) -> TopSeenUnseen:
    """The best class of each kind at each of `size` pixels, with the logits resized bilinearly."""
    seen, seen_logit = _best(logits, np.flatnonzero(labelled), size)
    unseen, unseen_logit = _best(logits, np.flatnonzero(~labelled), size)
    return TopSeenUnseen(seen.cpu().numpy(), unseen.cpu().numpy(), (unseen_logit - seen_logit).cpu().numpy())


def _best(
    logits: Float[Tensor, "class y x"], ids: Int[np.ndarray, "id"], size: tuple[int, int]
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
    best = torch.full(size, -torch.inf, device=logits.device)
    winner = torch.zeros(size, dtype=torch.long, device=logits.device)
    # a few classes at a time: all of COCO's at a photo's own size would be gigabytes
    for start in range(0, len(ids), CLASSES_AT_ONCE):
        some = torch.from_numpy(ids[start : start + CLASSES_AT_ONCE]).to(logits.device)
        value, index = F.interpolate(logits[some][None], size, mode="bilinear", align_corners=False)[0].max(dim=0)
        better = value > best
        best, winner = torch.where(better, value, best), torch.where(better, some[index], winner)
    return winner, best
