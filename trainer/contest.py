"""The best familiar against the best new class at every pixel: all that gamma can decide between."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

CLASSES_AT_ONCE = 16


@dataclass(frozen=True)
class Contest:
    """Two class ids a pixel and the lead (logit minus logit) of the new one; infinite where there is only one kind.

    Gamma is added to the logits of all new classes alike, so it never changes which of them is the best: one
    prediction serves every gamma.
    """

    familiar: Int[np.ndarray, "height width"]
    new: Int[np.ndarray, "height width"]
    lead: Float[np.ndarray, "height width"]

    def at(self, gamma: float) -> Int[np.ndarray, "height width"]:
        """The class of the greatest logit once gamma is added to those of new classes."""
        return np.where(self.lead + gamma > 0, self.new, self.familiar)


@torch.inference_mode()
def contest(logits: Float[Tensor, "class y x"], familiar: Bool[np.ndarray, "class"], size: tuple[int, int]) -> Contest:
    """The contest at each of `size` pixels, the logits resized bilinearly."""
    old, old_logit = _best(logits, np.flatnonzero(familiar), size)
    new, new_logit = _best(logits, np.flatnonzero(~familiar), size)
    return Contest(old.cpu().numpy(), new.cpu().numpy(), (new_logit - old_logit).cpu().numpy())


def _best(
    logits: Float[Tensor, "class y x"], ids: Int[np.ndarray, "id"], size: tuple[int, int]
) -> tuple[Int[Tensor, "height width"], Float[Tensor, "height width"]]:
    best = torch.full(size, -torch.inf, device=logits.device)
    winner = torch.zeros(size, dtype=torch.long, device=logits.device)
    # a few classes at a time: all of COCO's at a photograph's own size would be gigabytes
    for start in range(0, len(ids), CLASSES_AT_ONCE):
        some = torch.from_numpy(ids[start : start + CLASSES_AT_ONCE]).to(logits.device)
        value, index = F.interpolate(logits[some][None], size, mode="bilinear", align_corners=False)[0].max(dim=0)
        better = value > best
        best, winner = torch.where(better, value, best), torch.where(better, some[index], winner)
    return winner, best
