"""What a training step reads: images replayed as their cached view, labels, and what the teacher says of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float16, Int, Int16, Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from data_cache.content import Loaded
from data_cache.datasets.base import VOID, Dataset
from data_cache.errors import UserError
from data_cache.schema import reserved_label
from data_cache.splits import Split
from data_cache.views import View, replay_image, replay_label
from trainer.interrupt import end_quietly
from trainer.losses import Taught
from trainer.photometric import distort
from trainer.plm import IGNORE
from trainer.ranks import own

CPU = torch.device("cpu")
PHOTOMETRIC = 1
"""Sets the generators of colours apart from those of the stream, which share their seed."""


class Batch(NamedTuple):
    """Views as the student sees them, with the seen labels of their pixels (rank among seen classes, or -1).

    A tuple, because a DataLoader pins the tensors of no other class.
    """

    images: UInt8[Tensor, "batch 3 size size"]
    seen: Int16[Tensor, "batch size size"]
    image: Int[Tensor, "batch"]
    view: Int[Tensor, "batch"]


class TeacherSource(Protocol):
    """Who answers for CLIP during training: the cache, or a live teacher behind the same call."""

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """CLS tokens and fused labels of views, the labels with the reserved value where a token is not ignored."""


class CachedTeacher:
    """Reads CLS tokens and fused labels of views from memory, in the training process alone.

    Processes that decode have no part in it: forked, they share its pages with everything else and never touch them.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def __call__(
        self, image: Int[np.ndarray, "batch"], view: Int[np.ndarray, "batch"]
    ) -> tuple[Float16[np.ndarray, "batch channel"], Shaped[np.ndarray, "batch y x"]]:
        """What stage 1 stored."""
        return self._loaded.cls[image, view], self._loaded.label[image, view]


def taught(teacher: TeacherSource, batch: Batch, classes: int, device: torch.device = CPU) -> Taught:
    """What a teacher says of a batch, as the losses take it on a device; `classes` is the number of seen ones."""
    cls, labels = teacher(batch.image.numpy(), batch.view.numpy())
    pseudo = torch.from_numpy(_signed(labels)).to(device)
    answer = torch.from_numpy(cls.astype(np.float32)).to(device)
    seen, image = (part.to(device, non_blocking=True) for part in (batch.seen, batch.image))
    return Taught(answer, joint_target(seen, pseudo, classes), image)


def joint_target(
    seen: Int[Tensor, "batch height width"], pseudo: Int[Tensor, "batch y x"], classes: int
) -> Int[Tensor, "batch height width"]:
    """The seen label where a pixel has one, else K + the pseudo label of its (nearest) token, else -1."""
    height, width = seen.shape[1:]
    rows = torch.arange(height, device=seen.device) * pseudo.shape[1] // height
    columns = torch.arange(width, device=seen.device) * pseudo.shape[2] // width
    nearest = pseudo[:, rows[:, None], columns]
    nearest = torch.where(nearest == IGNORE, IGNORE, nearest + classes)
    return torch.where(seen == IGNORE, nearest, seen)


class ViewSet(TorchDataset):
    """The cached views of a dataset that are ok, replayed on image and label exactly as the teacher saw them.

    With `photometric` their colours are changed, another way each time; their geometry never is.
    """

    def __init__(
        self, dataset: Dataset, split: Split, loaded: Loaded, size: int, photometric: int | None = None
    ) -> None:
        self.dataset, self.size, self.photometric = dataset, size, photometric
        self.rank = split.seen_rank()
        self.box, self.flip, self.digest = loaded.box, loaded.flip, loaded.digest
        self._unchanged: set[int] = set()
        self.images: Int[np.ndarray, "ok"] = np.flatnonzero(loaded.ok)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: "Draw") -> tuple[UInt8[Tensor, "3 size size"], Tensor, int, int] | UserError:
        """One view; an unreadable image comes back as the error, to be raised where it can be told in one line."""
        index, view = int(self.images[draw.item]), draw.view
        try:
            self.check_unchanged(index)
            image, label = self.dataset.load(index)
        except UserError as error:
            return error
        geometry = View.stored(self.box[index, view], self.flip[index, view])
        pixels = torch.from_numpy(replay_image(image, geometry, self.size)).permute(2, 0, 1)
        if self.photometric is not None:
            pixels = distort(pixels, np.random.default_rng((self.photometric, draw.place, PHOTOMETRIC)))
        if label is None:
            return pixels, torch.full((self.size, self.size), IGNORE, dtype=torch.int16), index, view
        ranks = self.rank[replay_label(label, geometry, self.size)].astype(np.int16)
        return pixels, torch.from_numpy(np.where(ranks == VOID, IGNORE, ranks)), index, view

    def check_unchanged(self, index: int) -> None:
        """Raise UserError if an image or its label map is not what was cached; looks once a process and image."""
        if index in self._unchanged:
            return
        if self.dataset.digest(index) != self.digest[index]:
            raise UserError(
                f"{self.dataset.path(index)}: the image or its label map changed since it was cached; restore them, "
                "or precompute again into another --cache"
            )
        self._unchanged.add(index)


class Draw(NamedTuple):
    """One view on its way into a batch: which item of the `ViewSet`, which view, and its place in the stream."""

    item: int
    view: int
    place: int


@dataclass(frozen=True)
class Stream:
    """Endless batches in an order that depends on the seed and the step alone, so that resuming needs no state.

    Epoch after epoch each image comes once, in a new order and as one of its views at random; batches run across
    epochs.
    """

    items: int
    views: int
    batch_size: int
    seed: int

    def batch(self, step: int) -> list[Draw]:
        """The views of update number `step`, from 0."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = {epoch: _epoch(self, epoch) for epoch in {place // self.items for place in places}}
        chosen = ((place, *epochs[place // self.items], place % self.items) for place in places)
        return [Draw(int(order[at]), int(views[at]), place) for place, order, views, at in chosen]

    def steps(self, first: int, last: int) -> "Steps":
        """The updates `first` to `last` - 1 as a batch sampler."""
        return Steps(self, first, last)


@lru_cache(maxsize=2)  # drawing an epoch of COCO takes longer than reading a batch of its cache
def _epoch(stream: Stream, epoch: int) -> tuple[Int[np.ndarray, "item"], Int[np.ndarray, "item"]]:
    rng = np.random.default_rng((stream.seed, epoch))
    return rng.permutation(stream.items), rng.integers(stream.views, size=stream.items)


@dataclass(frozen=True)
class Steps:
    """A range of updates, in the form a DataLoader takes for its batch sampler; of several processes the own part."""

    stream: Stream
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[Draw]]:
        return (list(own(self.stream.batch(step))) for step in range(self.first, self.last))


def batches(views: ViewSet, stream: Stream, first: int, last: int, workers: int) -> Iterator[Batch]:
    """The batches of updates `first` to `last` - 1, decoded ahead by `workers` processes.

    One of several processes that train gets its own part of each.
    """
    loader = DataLoader(
        views,
        batch_sampler=stream.steps(first, last),
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=end_quietly,
        # its own generator: the global one belongs to the model and must resume bit for bit
        generator=torch.Generator().manual_seed(0),
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _collate(items: list) -> Batch | UserError:
    for item in items:
        if isinstance(item, UserError):
            return item
    images, seen, image, view = zip(*items, strict=True)
    return Batch(torch.stack(images), torch.stack(seen), torch.tensor(image), torch.tensor(view))


def _signed(labels: Shaped[np.ndarray, "batch y x"]) -> Int[np.ndarray, "batch y x"]:
    return np.where(labels == reserved_label(labels.dtype.name), IGNORE, labels.astype(np.int64))
