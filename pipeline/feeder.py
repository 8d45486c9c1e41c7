"""The feeder: images decoded, cropped and resized into batches, in threads, ahead of the encoder."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Integer, UInt8
from torch import Tensor

from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.sample import crop_image, crop_label
from data_cache.survey import Survey
from data_cache.views import Cropping, View
from pipeline.shard_job import StageTimes

IgnoredTokens = Callable[
    [UInt8[np.ndarray, "size size"] | None, Integer[np.ndarray, "value"] | None], Bool[np.ndarray, "y x"]
]


@dataclass(frozen=True)
class PreparedImage:
    """What is known of an image whose views are in a batch."""

    size: tuple[int, int]
    digest: tuple[str, str]
    views: list[View]
    ignored: list[Bool[np.ndarray, "y x"]]
    survey: Survey


@dataclass(frozen=True)
class ImageBatch:
    """Images for CLIP: rows of a shard in consecutive slots of a buffer.

    A slot is black if it has no image, or if the image cannot be read: all batches have the same size.
    """

    rows: Sequence[int]
    pixels: UInt8[Tensor, "view slot size size 3"]
    futures: list["Future[PreparedImage | UserError]"]

    @cached_property
    def images(self) -> list[PreparedImage | UserError]:
        """The image of each row, or why it cannot be read; waits for them."""
        return [future.result() for future in self.futures]

    @cached_property
    def readable(self) -> dict[int, PreparedImage]:
        """The images that could be read, by slot."""
        return {slot: image for slot, image in enumerate(self.images) if isinstance(image, PreparedImage)}

    def ignored(self, view: int) -> Bool[np.ndarray, "slot y x"]:
        """The ignored tokens of a view of each slot's image; none where it could not be read."""
        grid = next(iter(self.readable.values())).ignored[view].shape
        masks = np.zeros((len(self.rows), *grid), bool)
        for slot, image in self.readable.items():
            masks[slot] = image.ignored[view]
        return masks


@dataclass(frozen=True)
class Feeder:
    """Fills batches with the views of images.

    Args:
        dataset: the images.
        cropping: their views.
        ignored: gives the ignored tokens of a view from its label map and the values that occur in the image's.
        size: side of CLIP's input in pixels.
        slots: images per batch.
        pinned: whether batches are in pinned memory, from which a GPU copies asynchronously.

    """

    dataset: Dataset
    cropping: Cropping
    ignored: IgnoredTokens
    size: int
    slots: int
    pinned: bool = False

    @contextmanager
    def batches(
        self,
        pool: Executor,
        turn: AbstractContextManager[Any],
        rows: Sequence[int],
        first: int,
        ahead: int,
        times: StageTimes,
    ) -> Iterator[Iterator[ImageBatch]]:
        """Batches of `rows`, counted from image `first`; up to `ahead` of them are prepared before they are taken.

        Preparation starts as soon as `turn` is entered. Once the first batch is requested and the last image is in the
        queue of the pool, `turn` is left: whoever shares both is served after this. On exit, images that are no longer
        needed are canceled.
        """
        waiting = deque(rows[start : start + self.slots] for start in range(0, len(rows), self.slots))
        submitted: deque[ImageBatch] = deque()

        def submit() -> None:
            while waiting and len(submitted) < ahead:
                submitted.append(self._submit(pool, waiting.popleft(), first, times))

        def results() -> Iterator[ImageBatch]:
            while submitted:
                if not waiting:
                    in_turn.close()
                yield submitted.popleft()
                submit()
            in_turn.close()  # if there was nothing at all

        with ExitStack() as in_turn:
            in_turn.enter_context(turn)
            try:
                submit()
                yield results()
            finally:
                for future in (future for batch in submitted for future in batch.futures):
                    future.cancel()

    def _submit(self, pool: Executor, rows: Sequence[int], first: int, times: StageTimes) -> ImageBatch:
        shape = (self.cropping.count, self.slots, self.size, self.size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.pinned)
        pixels[:, len(rows) :] = 0
        prepare = partial(self._prepare, pixels.numpy(), times)
        return ImageBatch(rows, pixels, [pool.submit(prepare, slot, first + row) for slot, row in enumerate(rows)])

    def _prepare(
        self, pixels: UInt8[np.ndarray, "view slot size size 3"], times: StageTimes, slot: int, index: int
    ) -> PreparedImage | UserError:
        with times("decode"):
            try:
                image, label, digest, class_pixels = self.dataset.sample(index)
            except UserError as error:
                pixels[:, slot] = 0
                return error
            name, ignored = self.dataset.ids[index], []
            values = None if class_pixels is None else np.flatnonzero(class_pixels)
            views = self.cropping.views(name, *image.shape[:2])
            for number, view in enumerate(views):
                pixels[number, slot] = crop_image(image, view, self.size)
                ignored.append(self.ignored(crop_label(label, view, self.size), values))
            survey = Survey.of(name, pixels[0, slot], class_pixels)
            return PreparedImage(image.shape[:2], digest, views, ignored, survey)
