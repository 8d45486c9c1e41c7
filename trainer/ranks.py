"""What the other processes of a training have; with one process every call here gives back what it got.

Each process computes the loss of the *global* batch from rows that all have gathered, and gathering is differentiated
as what it is: the gradients of everybody's copy of a row add up where the row came from. The gradient of N equal
losses is N times that of one, of which DDP takes the mean over N: nothing else has to be scaled.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

Item = TypeVar("Item")


def count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def own(items: Sequence[Item]) -> Sequence[Item]:
    """The part of this process in what is shared out in equal, consecutive parts."""
    size = len(items) // count()
    return items[rank() * size : (rank() + 1) * size]


def gathered(rows: Shaped[Tensor, "own *rest"]) -> Shaped[Tensor, "all *rest"]:
    """The rows of all processes, by rank; each may have another number of them. Differentiable."""
    return _Gather.apply(rows) if count() > 1 else rows


def total(value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The sum over all processes, equal to the last bit on each. Differentiable."""
    return gathered(value[None]).sum(dim=0) if count() > 1 else value


def mean(value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The mean over all processes, equal to the last bit on each. Differentiable."""
    return total(value) / count() if count() > 1 else value


def anyone(flag: bool) -> bool:
    """Whether it is so in any process; none goes on before all have answered."""
    return bool(total(torch.tensor(int(flag))))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(count())]
        distributed.all_gather(sizes, torch.tensor([len(rows)], device=rows.device))
        lengths = [int(size) for size in sizes]
        ctx.start, ctx.stop = sum(lengths[: rank()]), sum(lengths[: rank() + 1])
        # a collective takes equal shapes
        padded = rows.new_zeros(max(lengths), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths]
        if padded.numel():
            distributed.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        if summed.numel():
            distributed.all_reduce(summed)
        return summed[ctx.start : ctx.stop]
