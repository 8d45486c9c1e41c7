"""Pixel learning (PLM): label prototypes (eq. 7), the vision-language adapter, and the classifiers (eq. 9)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data_cache.errors import UsageError
from trainer.config import Adapters, Scope
from trainer.distributed.ranks import all_gather, rank
from trainer.losses.pixel_terms import IGNORE

HEADS = 8


@dataclass(frozen=True)
class Prototypes:
    """Mean features of the labels in a batch: the seen classes present, then the pseudo labels of each image.

    `label` is the target value of each row, `image` the image that a pseudo label belongs to, or -1 for a seen class.
    """

    features: Float[Tensor, "prototype channel"]
    label: Int[Tensor, "prototype"]
    image: Int[Tensor, "prototype"]

    @property
    def is_seen(self) -> Bool[Tensor, "prototype"]:
        """Which rows are seen classes."""
        return self.image < 0


def label_cell_counts(
    target: Int[Tensor, "height width"], grid: tuple[int, int]
) -> tuple[Int[Tensor, "label"], Float[Tensor, "label cell"]]:
    """The labels of an image, and how many of their pixels fall on each cell of nearest-upsampled features."""
    height, width = target.shape
    rows = torch.arange(height, device=target.device) * grid[0] // height
    columns = torch.arange(width, device=target.device) * grid[1] // width
    cells, labelled = rows[:, None] * grid[1] + columns, target != IGNORE
    labels, inverse = target[labelled].unique(return_inverse=True)
    size = grid[0] * grid[1]
    counts = torch.bincount(inverse * size + cells[labelled], minlength=len(labels) * size)
    return labels, counts.view(len(labels), size).float()


def label_prototypes(
    features: Float[Tensor, "local channel y x"], target: Int[Tensor, "local height width"], num_seen: int
) -> Prototypes:
    """Eq. 7 as count matrix times features: a seen class pools over the batch, a pseudo label over its image.

    Absent labels have no row. With several processes, each passes its own slice of the batch and gets the prototypes of
    the whole batch.
    """
    sums, totals, labels, images = [], [], [], []
    for image, (cells, image_target) in enumerate(zip(features, target, strict=True), rank() * len(target)):
        present, counts = label_cell_counts(image_target, (cells.shape[1], cells.shape[2]))
        counts = counts.to(cells.dtype)
        sums.append(counts @ cells.flatten(1).T)
        totals.append(counts.sum(dim=1))
        labels.append(present)
        images.append(torch.where(present < num_seen, -1, image))
    keys = all_gather(torch.stack([torch.cat(images), torch.cat(labels)], dim=1))
    unique, row = keys.unique(dim=0, return_inverse=True)
    pooled = features.new_zeros(len(unique), features.shape[1]).index_add(0, row, all_gather(torch.cat(sums)))
    total = features.new_zeros(len(unique)).index_add(0, row, all_gather(torch.cat(totals)))
    return Prototypes(pooled / total[:, None], unique[:, 1], unique[:, 0])


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
    seen = prototypes.is_seen
    difference = F.normalize(generated[seen], dim=1) - text[prototypes.label[seen]]
    return difference.square().sum() / seen.sum().clamp(min=1)


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
    scope: Scope,
) -> Classifiers:
    """The classifiers with the pseudo labels of the image itself (`scope` "image") or of the whole batch."""
    num_seen, pseudo = len(text), ~prototypes.is_seen
    generated = F.normalize(generated, dim=1)[pseudo]
    image, label = prototypes.image[pseudo] - rank() * len(target), prototypes.label[pseudo]
    local = (image >= 0) & (image < len(target))
    if scope == "batch":
        weight, rows = torch.cat([text, generated])[None], None
        row = torch.arange(len(image), device=image.device)[local]
    else:
        generated, count = generated[local], torch.bincount(image[local], minlength=len(target))
        # prototypes are sorted by image, so those of an image are consecutive
        row = torch.arange(len(generated), device=image.device) - (count.cumsum(0) - count)[image[local]]
        padded = generated.new_zeros(len(target), int(count.max()), text.shape[1])
        padded = padded.index_put((image[local], row), generated)
        weight, rows = torch.cat([text.expand(len(target), -1, -1), padded], dim=1), num_seen + count
    table = target.new_full((len(target), max(num_seen, int(target.max()) + 1) + 1), IGNORE)
    table[:, :num_seen] = torch.arange(num_seen, device=target.device)
    table[image[local], label[local]] = num_seen + row
    # the last entry, which no label fills, is that of IGNORE
    indices = target.flatten(1).where(target.flatten(1) != IGNORE, table.shape[1] - 1)
    return Classifiers(weight, rows, table.gather(1, indices).view_as(target))
