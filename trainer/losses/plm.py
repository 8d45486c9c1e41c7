"""Pixel learning: prototypes of labels (eq. 7), the vision-language adapter, and the classifiers they make (eq. 9)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data_cache.errors import UsageError
from trainer.config import Adapters, Scope
from trainer.distributed.ranks import all_gather, rank

IGNORE = -1
"""Target of a pixel without any label. Targets 0..K-1 are seen classes, K+j is pseudo label j of the image."""

HEADS = 8


@dataclass(frozen=True)
class Prototypes:
    """Mean features of the labels in a batch: first the seen classes present, then the pseudo labels of each image.

    `label` holds the target value of each row, `owner` the image of a pseudo label, or -1 for a seen class.
    """

    features: Float[Tensor, "prototype channel"]
    label: Int[Tensor, "prototype"]
    owner: Int[Tensor, "prototype"]

    @property
    def is_seen(self) -> Tensor:
        """Which rows are seen classes."""
        return self.owner < 0


def label_cell_counts(
    target: Int[Tensor, "height width"], grid: tuple[int, int]
) -> tuple[Int[Tensor, "label"], Float[Tensor, "label cell"]]:
    """How many pixels of each label fall on each cell, as if features were nearest-upsampled to the pixels."""
    height, width = target.shape
    rows = torch.arange(height, device=target.device) * grid[0] // height
    columns = torch.arange(width, device=target.device) * grid[1] // width
    cells, labelled = rows[:, None] * grid[1] + columns, target != IGNORE
    labels, inverse = target[labelled].unique(return_inverse=True)
    size = grid[0] * grid[1]
    counts = torch.bincount(inverse * size + cells[labelled], minlength=len(labels) * size)
    return labels, counts.view(len(labels), size).float()


def prototypes(
    features: Float[Tensor, "own channel y x"], target: Int[Tensor, "own height width"], seen: int
) -> Prototypes:
    """Eq. 7 as count matrix times features: a seen class pools over the batch, a pseudo label over its image.

    Absent labels have no row. With several processes each passes its own part of the batch and gets the prototypes of
    the whole batch.
    """
    sums, totals, labels, owners = [], [], [], []
    for image, (cells, one) in enumerate(zip(features, target, strict=True), rank() * len(target)):
        found, counts = label_cell_counts(one, (cells.shape[1], cells.shape[2]))
        counts = counts.to(cells.dtype)
        sums.append(counts @ cells.flatten(1).T)
        totals.append(counts.sum(dim=1))
        labels.append(found)
        owners.append(torch.where(found < seen, -1, image))
    keys = all_gather(torch.stack([torch.cat(owners), torch.cat(labels)], dim=1))
    unique, row = keys.unique(dim=0, return_inverse=True)
    pooled = features.new_zeros(len(unique), features.shape[1]).index_add(0, row, all_gather(torch.cat(sums)))
    total = features.new_zeros(len(unique)).index_add(0, row, all_gather(torch.cat(totals)))
    return Prototypes(pooled / total[:, None], unique[:, 1], unique[:, 0])


class Adapter(nn.Module):
    """The vision-language adapter, used in training only (Table 5).

    `transformer`: one decoder layer, with all prototypes of the batch as one sequence of queries and the
    batch's L2-normalised CLS tokens as memory. `mlp`: Linear-ReLU-Linear. `identity`: the prototypes themselves.
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
        self, features: Float[Tensor, "prototype channel"], cls: Float[Tensor, "batch channel"]
    ) -> Float[Tensor, "prototype channel"]:
        """Generated features of the prototypes."""
        if not len(features):
            return features
        if self.kind != "transformer":
            return self.net(features)
        return self.net(features[None], F.normalize(cls, dim=1)[None])[0]


def generate_loss(
    generated: Float[Tensor, "prototype channel"], found: Prototypes, text: Float[Tensor, "seen channel"]
) -> Float[Tensor, ""]:
    """Eq. 8: the mean over the seen classes present of the squared distance, summed over channels, between their
    L2-normalised generated and text features. Zero (and differentiable) if no seen class is present.
    """
    rows = found.is_seen
    distance = F.normalize(generated[rows], dim=1) - text[found.label[rows]]
    return distance.square().sum() / rows.sum().clamp(min=1)


def classifiers(
    generated: Float[Tensor, "prototype channel"],
    found: Prototypes,
    text: Float[Tensor, "seen channel"],
    target: Int[Tensor, "own height width"],
    scope: Scope,
) -> list[tuple[Float[Tensor, "row channel"], Int[Tensor, "height width"]]]:
    """Per image of this process, the rows its pixels choose between (eq. 9) and its targets as row numbers.

    Rows are the seen text features, then the generated pseudo features of the image itself or of the whole batch.
    """
    seen = len(text)
    unit = F.normalize(generated, dim=1)
    pseudo = ~found.is_seen
    result = []
    for image, one in enumerate(target, rank() * len(target)):
        mine = found.owner == image
        rows = torch.cat([text, unit[mine if scope == "image" else pseudo]])
        position = torch.arange(len(rows) - seen, device=one.device)
        own = position if scope == "image" else position[mine[pseudo]]
        column = torch.full((int(one.max().clamp(min=seen - 1)) + 2,), IGNORE, device=one.device)
        column[:seen] = torch.arange(seen, device=one.device)
        column[found.label[mine]] = seen + own
        # the last entry stays IGNORE, and is what the target IGNORE = -1 indexes
        result.append((rows, column[one]))
    return result
