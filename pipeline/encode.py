"""Encode a shard: decode its images, ask CLIP, cluster, and say of every image whether it worked."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import UInt8

from data_cache.content import OK, Shard
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.schema import Layout, reserved_label
from data_cache.views import Cropping, View, replay_image, replay_label
from pipeline.clip import FrozenCLIP, finite
from pipeline.masks import Masker

DECODERS = 4
BATCH = {"cpu": 4, "cuda": 32}
"""Views a forward. Fixed, because the rounding of a matrix product may depend on the batch it travels in."""


@dataclass(frozen=True)
class _Decoded:
    index: int
    size: tuple[int, int]
    digest: tuple[str, str]
    views: list[View]
    images: list[UInt8[np.ndarray, "size size 3"]]
    labels: list[UInt8[np.ndarray, "size size"] | None]


@dataclass(frozen=True)
class Encoder:
    """Everything a worker needs to encode shards."""

    clip: FrozenCLIP
    dataset: Dataset
    masker: Masker
    layout: Layout
    cropping: Cropping = field(default_factory=Cropping)

    def shard(
        self, number: int, rows: Sequence[int] | None = None, tell: Callable[[int], None] = lambda _: None
    ) -> tuple[Shard, dict[str, float]]:
        """The content of a shard and the seconds spent in each stage; `tell` hears of images done.

        Of its images only `rows`, if given; the others stay empty. An image that cannot be read, has an unfitting
        label, or makes CLIP overflow float16 becomes a failure with its reason; it never stops the others.
        """
        span = self.layout.span(number)
        shard = self._empty(span.stop - span.start)
        rows = range(len(shard.status)) if rows is None else rows
        clock: dict[str, float] = defaultdict(float)
        size = BATCH.get(self.clip.device.type, BATCH["cpu"])
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = pool.map(self._decode, [span.start + row for row in rows])
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                with _timed(clock, "decode"):
                    items = [next(decoded) for _ in some]
                self._encode(shard, dict(zip(some, items, strict=True)), clock)
                tell(len(some))
        return shard, dict(clock)

    def _encode(self, shard: Shard, items: dict[int, _Decoded | UserError], clock: dict[str, float]) -> None:
        good: list[tuple[int, _Decoded]] = []
        for row, item in items.items():
            if isinstance(item, UserError):
                shard.status[row] = str(item)
                continue
            shard.size[row], (shard.content_hash[row], shard.label_hash[row]) = item.size, item.digest
            good.append((row, item))
        for view in range(self.layout.views if good else 0):
            with _timed(clock, "encode"):
                features = self.clip.encode(np.stack([item.images[view] for _, item in good]))
                fits = finite(features.cls) & finite(features.dense)
            for (row, item), cls, dense, fit in zip(good, features.cls, features.dense, fits, strict=True):
                if not fit:
                    shard.status[row] = "CLIP's features are not finite in float16"
                    continue
                with _timed(clock, "cluster"):
                    shard.label[row, view], shard.count[row, view] = self.masker(dense, item.labels[view])
                shard.cls[row, view] = cls
                shard.box[row, view], shard.flip[row, view] = item.views[view].box, item.views[view].flip
                if shard.dense is not None:
                    shard.dense[row, view] = dense
        for row, _ in good:
            if shard.status[row]:
                self._blank(shard, row)
            else:
                shard.status[row] = OK

    def _decode(self, index: int) -> _Decoded | UserError:
        try:
            image, label = self.dataset.load(index)
            digest = self.dataset.digest(index)
        except UserError as error:
            return error
        size = self.clip.image_size
        views = self.cropping.views(self.dataset.ids[index], *image.shape[:2])
        images = [replay_image(image, view, size) for view in views]
        labels = [None if label is None else replay_label(label, view, size) for view in views]
        return _Decoded(index, image.shape[:2], digest, views, images, labels)

    def _empty(self, images: int) -> Shard:
        views, (h, w), channels = self.layout.views, self.layout.grid, self.layout.channels
        dense = (images, views, h, w, channels)
        dtype = self.masker.dtype
        return Shard(
            size=np.zeros((images, 2), np.int32),
            content_hash=[""] * images,
            label_hash=[""] * images,
            status=[""] * images,
            box=np.zeros((images, views, 4), np.int32),
            flip=np.zeros((images, views), bool),
            cls=np.zeros((images, views, channels), np.float16),
            dense=np.zeros(dense, np.float16) if self.layout.dense != "none" else None,
            label=np.full((images, views, h, w), reserved_label(dtype), dtype),
            count=np.zeros((images, views), np.int32),
        )

    def _blank(self, shard: Shard, row: int) -> None:
        shard.cls[row], shard.count[row] = 0, 0
        shard.label[row] = reserved_label(self.masker.dtype)
        if shard.dense is not None:
            shard.dense[row] = 0


@contextmanager
def _timed(clock: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        clock[stage] += time.perf_counter() - start
