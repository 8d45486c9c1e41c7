"""The interface of a segmenter: its vocabulary, and a prediction for an image that serves every gamma."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.content import text_problems
from data_cache.splits import Split

CLASS_CHUNK = 16
"""Classes whose logits are in memory at a time: all classes of COCO at a photo's own size would take gigabytes."""


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


class Logits(Protocol):
    """Logits of an image by class: a tensor, or an object that computes those of some classes on demand."""

    @property
    def device(self) -> torch.device:
        """Where they are computed."""

    def __getitem__(self, ids: Int[Tensor, "id"]) -> Float[Tensor, "id y x"]: ...


@torch.inference_mode()
def top_seen_unseen(logits: Logits, labelled: Bool[np.ndarray, "class"], size: tuple[int, int]) -> TopSeenUnseen:
    """The best class of each kind at each pixel, after resizing the logits bilinearly to `size`."""
    seen, unseen = (_scan(logits, np.flatnonzero(kind), size) for kind in (labelled, ~labelled))
    return _top(seen, unseen)


@torch.inference_mode()
def labels_and_scores(
    logits: Logits, labelled: Bool[np.ndarray, "class"], gamma: float, size: tuple[int, int]
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """The best class at each pixel, and its softmax probability; gamma is added to the unlabelled classes.

    The logits are resized bilinearly to `size`, as in `top_seen_unseen`.
    """
    seen, unseen = (_scan(logits, np.flatnonzero(kind), size, sums=True) for kind in (labelled, ~labelled))
    best = torch.maximum(seen.logit, unseen.logit + gamma)
    total = seen.total * (seen.logit - best).exp_() + unseen.total * (unseen.logit + gamma - best).exp_()
    return _top(seen, unseen).at(gamma), total.reciprocal_().cpu().numpy()


class _Scan(NamedTuple):
    """At each pixel, the best of some classes, its logit, and the sum of exp(logit - that logit) over the classes."""

    best: Int[Tensor, "height width"]
    logit: Float[Tensor, "height width"]
    total: Float[Tensor, "height width"]


def _scan(logits: Logits, ids: Int[np.ndarray, "id"], size: tuple[int, int], sums: bool = False) -> _Scan:
    """Scan the logits of the classes `ids` in chunks, each resized to `size`. `total` is 0 without `sums`."""
    best = torch.zeros(size, dtype=torch.long, device=logits.device)
    highest = torch.full(size, -torch.inf, device=logits.device)
    total = torch.zeros(size, device=logits.device)
    for start in range(0, len(ids), CLASS_CHUNK):
        chunk = torch.from_numpy(ids[start : start + CLASS_CHUNK]).to(logits.device)
        resized = F.interpolate(logits[chunk][None], size, mode="bilinear", align_corners=False)[0]
        logit, index = resized.max(dim=0)
        better = logit > highest
        best = torch.where(better, chunk[index], best)
        higher = torch.where(better, logit, highest)
        if sums:
            # relative to the best logit so far, so that no exponential overflows
            total = total * (highest - higher).exp_() + resized.sub_(higher).exp_().sum(dim=0)
        highest = higher
    return _Scan(best, highest, total)


def _top(seen: _Scan, unseen: _Scan) -> TopSeenUnseen:
    margin = (unseen.logit - seen.logit).cpu().numpy()
    return TopSeenUnseen(seen.best.cpu().numpy(), unseen.best.cpu().numpy(), margin)
