"""The sampling order: which views are in the batch of each update."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from trainer.distributed.ranks import local_slice


class Draw(NamedTuple):
    """One view of a batch: item of the `ViewDataset`, view number, and position in the endless stream."""

    item: int
    view: int
    position: int


@dataclass(frozen=True)
class Stream:
    """Endless batches in an order that depends only on the seed and the step, so that resuming needs no state.

    Each epoch draws every image once, in a new order and in a random view. A batch may span two epochs.
    """

    items: int
    views: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> list[Draw]:
        """The views of update `step`, counted from 0."""
        draws = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(position, self.items)
            order, views = _epoch(self, epoch)
            draws.append(Draw(int(order[index]), int(views[index]), position))
        return draws


@lru_cache(maxsize=2)  # drawing an epoch of COCO takes longer than decoding a batch
def _epoch(stream: Stream, epoch: int) -> tuple[Int[np.ndarray, "item"], Int[np.ndarray, "item"]]:
    rng = np.random.default_rng((stream.seed, epoch))
    return rng.permutation(stream.items), rng.integers(stream.views, size=stream.items)


@dataclass(frozen=True)
class BatchSampler:
    """Updates `first` to `last` - 1 of a stream, for a DataLoader. Each training process gets its slice of a batch."""

    stream: Stream
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        return (list(local_slice(self.stream.batch(step))) for step in range(self.first, self.last))
