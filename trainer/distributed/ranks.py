"""Differentiable collectives between training processes. With a single process, each returns its argument.

Every process computes the loss of the *global* batch from rows gathered from all of them. In the backward pass, the
gradients of all copies of a row are summed in the process that the row came from. N equal losses give N times the
gradient of one, and DDP averages over N, so nothing else has to be scaled.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

Item = TypeVar("Item")


def world_size() -> int:
    """The number of training processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The index of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def local_slice(items: Sequence[Item]) -> Sequence[Item]:
    """The slice of this process when items are split into equal, consecutive slices."""
    size = len(items) // world_size()
    return items[rank() * size : (rank() + 1) * size]


def all_gather(rows: Shaped[Tensor, "local *rest"]) -> Shaped[Tensor, "all *rest"]:
    """The rows of all processes, ordered by rank. Their number may differ between processes. Differentiable."""
    return _Gather.apply(rows) if world_size() > 1 else rows


def all_reduce_sum(value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The sum over all processes, bit-identical in each of them. Differentiable."""
    return all_gather(value[None]).sum(dim=0) if world_size() > 1 else value


def all_reduce_mean(value: Shaped[Tensor, "*any"]) -> Shaped[Tensor, "*any"]:
    """The mean over all processes, bit-identical in each of them. Differentiable."""
    return all_reduce_sum(value) / world_size() if world_size() > 1 else value


def any_rank(flag: bool) -> bool:
    """Whether the flag is set in any process. This is a barrier."""
    return bool(all_reduce_sum(torch.tensor(int(flag))))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        # in host memory: reading them from a GPU would wait for it
        sizes = [torch.zeros(1, dtype=torch.long) for _ in range(world_size())]
        distributed.all_gather(sizes, torch.tensor([len(rows)]))
        lengths = [int(size) for size in sizes]
        ctx.start, ctx.stop = sum(lengths[: rank()]), sum(lengths[: rank() + 1])
        # distributed.all_gather requires equal shapes
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
