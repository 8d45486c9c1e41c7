"""The order of training: which views make up the batch of each update."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from trainer.distributed.ranks import local_slice


class Draw(NamedTuple):
    """One view of a batch: the item of the `ViewDataset`, the view, and the position in the endless stream."""

    item: int
    view: int
    position: int


@dataclass(frozen=True)
class Stream:
    """Endless batches in an order that depends on the seed and the step alone, so that resuming needs no state.

    Each epoch draws every image once, in a new order and as one of its views at random; batches run across epochs.
    """

    items: int
    views: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> list[Draw]:
        """The views of update number `step`, from 0."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = {epoch: _epoch(self, epoch) for epoch in {position // self.items for position in positions}}
        drawn = ((position, *epochs[position // self.items], position % self.items) for position in positions)
        return [Draw(int(order[at]), int(views[at]), position) for position, order, views, at in drawn]


@lru_cache(maxsize=2)  # drawing an epoch of COCO takes longer than reading a batch of its cache
def _epoch(stream: Stream, epoch: int) -> tuple[Int[np.ndarray, "item"], Int[np.ndarray, "item"]]:
    rng = np.random.default_rng((stream.seed, epoch))
    return rng.permutation(stream.items), rng.integers(stream.views, size=stream.items)


@dataclass(frozen=True)
class BatchSampler:
    """The updates `first` to `last` - 1 of a stream, for a DataLoader; with several processes, each one's own part."""

    stream: Stream
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        return (list(local_slice(self.stream.batch(step))) for step in range(self.first, self.last))
