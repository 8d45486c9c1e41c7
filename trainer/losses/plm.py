"""Pixel learning (PLM): label prototypes (eq. 7), the vision-language adapter, and the classifiers (eq. 9)."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data_cache.errors import UsageError
from data_cache.system.async_copy import to_device
from trainer.config import Adapters, Scope
from trainer.distributed.ranks import all_gather, rank
from trainer.losses.pixel_terms import IGNORE

HEADS = 8


@dataclass(frozen=True)
class Prototypes:
    """Mean features of the labels in a batch: the seen classes present, then the pseudo labels of each image.

    `label` is the target value of each row, `image` the image that a pseudo label belongs to, or -1 for a seen class.
    Both are in host memory.
    """

    features: Float[Tensor, "prototype channel"]
    label: Int[np.ndarray, "prototype"]
    image: Int[np.ndarray, "prototype"]

    @property
    def num_seen(self) -> int:
        """How many rows are seen classes. They come first."""
        return int((self.image < 0).sum())


def label_prototypes(
    features: Float[Tensor, "local channel y x"],
    target: Int[Tensor, "local height width"],
    present: Bool[np.ndarray, "local label"],
    num_seen: int,
) -> Prototypes:
    """Eq. 7 as count matrices times features: a seen class pools over the batch, a pseudo label over its image.

    Absent labels have no row. With several processes, each passes its own slice of the batch and gets the prototypes of
    the whole batch.

    Args:
        features: student features.
        target: the label of each pixel, or `IGNORE`.
        present: which labels occur in each target, in host memory, so that no shape depends on what a GPU computes.
        num_seen: number of seen classes, the first labels.

    """
    device, channels = features.device, features.shape[1]
    slot = present.cumsum(axis=1) - 1
    slots = int(present.sum(axis=1).max())
    counts = _cell_counts(_looked_up(slot, target, slots), slots, features)
    sums = torch.cat([counts @ features.flatten(2).mT, counts.sum(dim=2, keepdim=True)], dim=2).flatten(0, 1)
    image, label = present.nonzero()
    sums = sums[to_device(image * slots + slot[image, label], device)]
    owner = np.where(label < num_seen, -1, image + rank() * len(target))
    keys = all_gather(torch.from_numpy(np.stack([owner, label], axis=1))).numpy()
    unique, row = np.unique(keys, axis=0, return_inverse=True)
    pooled = features.new_zeros(len(unique), channels + 1)
    pooled = pooled.index_add(0, to_device(row.ravel(), device), all_gather(sums))
    return Prototypes(pooled[:, :-1] / pooled[:, -1:], unique[:, 1], unique[:, 0])


def _cell_counts(
    slot: Int[Tensor, "batch height width"], slots: int, features: Float[Tensor, "batch channel y x"]
) -> Float[Tensor, "batch slot cell"]:
    """How many pixels of each slot fall on each cell of nearest-upsampled features, without those of slot `slots`."""
    (height, width), (y_size, x_size) = slot.shape[1:], features.shape[2:]
    rows = torch.arange(height, device=slot.device) * y_size // height
    columns = torch.arange(width, device=slot.device) * x_size // width
    entry = ((slot * y_size + rows[:, None]) * x_size + columns).flatten(1)
    counts = features.new_zeros(len(slot), (slots + 1) * y_size * x_size)
    counts.scatter_add_(1, entry, counts.new_ones(()).expand_as(entry))
    return counts.view(len(slot), slots + 1, y_size * x_size)[:, :-1]


def _looked_up(
    table: Int[np.ndarray, "batch label"], target: Int[Tensor, "batch height width"], ignored: int
) -> Int[Tensor, "batch height width"]:
    """The entry of each pixel's label in the row of its image, or `ignored` where a pixel has no label."""
    padded = np.pad(table, ((0, 0), (0, 1)), constant_values=ignored)
    labels = target.flatten(1)
    labels = labels.where(labels != IGNORE, table.shape[1])
    return to_device(padded, target.device).gather(1, labels).view_as(target)


class Adapter(nn.Module):
    """The vision-language adapter, used in training only (Table 5).

    `transformer`: one decoder layer; all prototypes of the batch are one sequence of queries, and the L2-normalized CLS
    tokens of the batch are the memory. `mlp`: Linear-ReLU-Linear. `identity`: the prototypes themselves.
    """

    def __init__(self, kind: Adapters, channels: int) -> None:
        super().__init__()
        self.kind = kind
        self.net: nn.Module = nn.Identity()
        if kind == "transformer":
            if channels % HEADS:
                raise UsageError(f"--vla transformer: {HEADS} heads do not divide CLIP's width {channels}; choose mlp")
            self.net = nn.TransformerDecoderLayer(channels, HEADS, 4 * channels, dropout=0.0, batch_first=True)
        elif kind == "mlp":
            self.net = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(
        self, prototypes: Float[Tensor, "prototype channel"], cls: Float[Tensor, "batch channel"]
    ) -> Float[Tensor, "prototype channel"]:
        """The generated feature of each prototype."""
        if not len(prototypes):
            return prototypes
        if self.kind != "transformer":
            return self.net(prototypes)
        return self.net(prototypes[None], F.normalize(cls, dim=1)[None])[0]


def generate_loss(
    generated: Float[Tensor, "prototype channel"], prototypes: Prototypes, text: Float[Tensor, "seen channel"]
) -> Float[Tensor, ""]:
    """Eq. 8: the squared distance between L2-normalized generated and text features of the seen classes present.

    It is summed over channels and averaged over classes. It is zero (and differentiable) if no seen class is present.
    """
    count = prototypes.num_seen
    expected = text[to_device(prototypes.label[:count], text.device)]
    return (F.normalize(generated[:count], dim=1) - expected).square().sum() / max(count, 1)


@dataclass(frozen=True)
class Classifiers:
    """The classifiers of this process's images (eq. 9), and its targets.

    Args:
        weight: seen text features, then generated pseudo-label features. One classifier for all images, or one per
            image, filled up with zeros.
        rows: how many rows each image has; None if one classifier serves all.
        target: the row of each pixel, or `IGNORE`.

    """

    weight: Float[Tensor, "classifier row channel"]
    rows: Int[Tensor, "local"] | None
    target: Int[Tensor, "local height width"]


def build_classifiers(
    generated: Float[Tensor, "prototype channel"],
    prototypes: Prototypes,
    text: Float[Tensor, "seen channel"],
    target: Int[Tensor, "local height width"],
    present: Bool[np.ndarray, "local label"],
    scope: Scope,
) -> Classifiers:
    """The classifiers with the pseudo labels of the image itself (`scope` "image") or of the whole batch."""
    num_seen, images, device = len(text), len(target), text.device
    is_pseudo = present[:, num_seen:]
    # pseudo labels are sorted by image, so those of this process are consecutive
    first = int((prototypes.image < rank() * images).sum())
    own = F.normalize(generated[first : first + int(is_pseudo.sum())], dim=1)
    if scope == "batch":
        seen = prototypes.num_seen
        weight, rows = torch.cat([text, F.normalize(generated[seen:], dim=1)])[None], None
        row = first - seen + is_pseudo.ravel().cumsum().reshape(is_pseudo.shape) - 1
    else:
        count, row = is_pseudo.sum(axis=1), is_pseudo.cumsum(axis=1) - 1
        places = (to_device(index, device) for index in (is_pseudo.nonzero()[0], row[is_pseudo]))
        padded = own.new_zeros(images, int(count.max()), text.shape[1]).index_put(tuple(places), own)
        weight, rows = torch.cat([text.expand(images, -1, -1), padded], dim=1), to_device(num_seen + count, device)
    seen_row = np.tile(np.arange(num_seen), (images, 1))
    return Classifiers(weight, rows, _looked_up(np.concatenate([seen_row, num_seen + row], axis=1), target, IGNORE))
