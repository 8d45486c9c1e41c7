"""Encode a shard: decode its images, ask CLIP, cluster, and say of every image whether it worked."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from threading import Event, Lock
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, UInt8

from data_cache.content import OK, Shard
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.schema import Layout, reserved_label
from data_cache.views import Cropping, View, replay_image, replay_label
from pipeline.arriving import Arriving
from pipeline.clip import FrozenCLIP
from pipeline.masks import Masker
from pipeline.stages import StageTimes

T, R = TypeVar("T"), TypeVar("R")

DECODERS = 4
AHEAD = 2
"""Batches that are decoded before CLIP has time for them, and that a GPU has in its queue or behind it, at the most."""


@dataclass(frozen=True)
class _Decoded:
    index: int
    size: tuple[int, int]
    digest: tuple[str, str]
    views: list[View]
    images: list[UInt8[np.ndarray, "size size 3"]]
    ignored: list[Bool[np.ndarray, "y x"]]


@dataclass(frozen=True)
class Encoder:
    """Everything a worker needs to encode shards. One at a time brings CLIP work; another is finished meanwhile."""

    clip: FrozenCLIP
    dataset: Dataset
    masker: Masker
    layout: Layout
    cropping: Cropping = field(default_factory=Cropping)
    asking: AbstractContextManager[Any] = field(default_factory=Lock, compare=False, repr=False)
    """Held by the shard that brings work."""
    leaving: AbstractContextManager[Any] = field(default_factory=Lock, compare=False, repr=False)
    """Held by the shard that is finished and written."""

    @contextmanager
    def shard(
        self,
        number: int,
        rows: Sequence[int] | None = None,
        tell: Callable[[int], None] = lambda _: None,
        times: StageTimes | None = None,
    ) -> Iterator[Shard]:
        """The content of a shard; `tell` hears of images done, `times` of the seconds spent in each stage.

        Of its images only `rows`, if given; the others stay empty. An image that cannot be read, has an unfitting
        label, or makes CLIP overflow float16 becomes a failure with its reason; it never stops the others.

        Images are decoded ahead of CLIP, in threads. Batches are asked and then clustered by as many threads as may ask
        CLIP at once (`FrozenCLIP.turn`), or some more, so that a GPU always has the next one in its queue. While the
        caller is inside, CLIP is asked about the next shard, which comes out only then: shards keep the order in which
        they were asked, and no more than two are in memory.
        """
        span, times = self.layout.span(number), times or StageTimes()
        shard = self._empty(span.stop - span.start)
        rows = range(len(shard.status)) if rows is None else rows
        size = self.clip.batch
        threads = max(DECODERS, torch.get_num_threads()) if self.clip.device.type == "cuda" else DECODERS
        hands = self.clip.askers + (AHEAD if self.clip.device.type == "cuda" else 0)
        with ExitStack() as last, ThreadPoolExecutor(threads) as decoders, ThreadPoolExecutor(hands) as askers:
            ahead = (self.clip.askers + AHEAD) * size
            decoded = _ahead(decoders, partial(self._decode, times), [span.start + row for row in rows], ahead)
            behind: deque[Future[int]] = deque()
            stopped = Event()
            try:
                with self.asking:
                    for start in range(0, len(rows), size):
                        some = rows[start : start + size]
                        with times("wait"):
                            items = dict(zip(some, islice(decoded, len(some)), strict=True))
                        behind.append(askers.submit(self._answer, shard, items, times, stopped))
                        while behind and (len(behind) > hands or behind[0].done()):
                            tell(behind.popleft().result())
                    last.enter_context(self.leaving)
                for one in behind:
                    tell(one.result())
            except BaseException:
                stopped.set()
                raise
            self._conclude(shard, rows)
            yield shard

    def _answer(self, shard: Shard, items: dict[int, _Decoded | UserError], times: StageTimes, stopped: Event) -> int:
        """Ask CLIP about each view of the images of a batch that could be read, and store and cluster what it says."""
        good: dict[int, _Decoded] = {}
        for row, item in items.items():
            if isinstance(item, UserError):
                shard.status[row] = str(item)
            else:
                shard.size[row], (shard.content_hash[row], shard.label_hash[row]) = item.size, item.digest
                good[row] = item
        for view in range(self.layout.views if good else 0):
            if stopped.is_set():
                break
            self._follow(shard, good, view, self._ask(list(good.values()), view, times), times)
        return len(items)

    @torch.inference_mode()
    def _ask(self, items: Sequence[_Decoded], view: int, times: StageTimes) -> Arriving:
        """What is known of a view of some images once CLIP was asked, and a GPU, if it clusters, after it."""
        gpu, size = self.clip.device.type == "cuda", self.clip.image_size
        # filled up: neither must an unreadable image change how its neighbours are rounded, nor a compiled CLIP see
        # batches of several sizes
        with self.clip.turn(), times("encode"):
            images = torch.zeros(self.clip.batch, size, size, 3, dtype=torch.uint8, pin_memory=gpu)
            np.stack([item.images[view] for item in items], out=images.numpy()[: len(items)])
            features = self.clip.ask(images)
            told = {"fit": features.finite(), "cls": features.cls}
            if self.masker.queues:
                ignored = torch.from_numpy(np.stack([item.ignored[view] for item in items]))
                told["fused"] = self.masker.fused(
                    features.dense[: len(items)], ignored.pin_memory() if gpu else ignored
                )
            if self.layout.dense != "none" or not self.masker.queues:
                told["dense"] = features.dense
            return Arriving({name: part[: len(items)] for name, part in told.items()})

    def _follow(
        self, shard: Shard, asked: dict[int, _Decoded], view: int, arriving: Arriving, times: StageTimes
    ) -> None:
        """Store what CLIP said of a batch, and cluster it."""
        rows, items = np.array(list(asked)), list(asked.values())
        with times("encode"):  # where a GPU is waited for
            answer = arriving.arrays()
        fit = answer["fit"]
        for row in rows[~fit]:
            shard.status[row] = "CLIP's features are not finite in float16"
        shard.cls[rows, view] = answer["cls"]
        shard.box[rows, view] = [item.views[view].box for item in items]
        shard.flip[rows, view] = [item.views[view].flip for item in items]
        if shard.dense is not None:
            shard.dense[rows, view] = answer["dense"]
        if fit.any():
            # on a CPU within as many threads as CLIP has for it; a GPU is not to wait for who clusters here
            with self.clip.turn() if self.clip.device.type == "cpu" else nullcontext(), times("cluster"):
                if "fused" in answer:
                    masks = self.masker.stored(answer["fused"][fit])
                else:
                    ignored = np.stack([item.ignored[view] for item in items])
                    masks = self.masker.masks(answer["dense"][fit], ignored[fit])
            shard.label[rows[fit], view], shard.count[rows[fit], view] = masks

    def _conclude(self, shard: Shard, rows: Sequence[int]) -> None:
        for row in rows:
            if shard.status[row]:
                self._blank(shard, row)
            else:
                shard.status[row] = OK

    def _decode(self, times: StageTimes, index: int) -> _Decoded | UserError:
        with times("decode"):
            return self._read(index)

    def _read(self, index: int) -> _Decoded | UserError:
        try:
            image, label = self.dataset.load(index)
            digest = self.dataset.digest(index)
        except UserError as error:
            return error
        size = self.clip.image_size
        views = self.cropping.views(self.dataset.ids[index], *image.shape[:2])
        images = [replay_image(image, view, size) for view in views]
        labels = [None if label is None else replay_label(label, view, size) for view in views]
        return _Decoded(index, image.shape[:2], digest, views, images, list(map(self.masker.ignored, labels)))

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
        shard.cls[row], shard.count[row], shard.box[row], shard.flip[row] = 0, 0, 0, False
        shard.label[row] = reserved_label(self.masker.dtype)
        if shard.dense is not None:
            shard.dense[row] = 0


def _ahead(pool: Executor, work: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """Results in order, worked out up to `depth` items ahead of whoever takes them, from now on."""
    rest = iter(items)
    waiting = deque(pool.submit(work, item) for item in islice(rest, depth))

    def results() -> Iterator[R]:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result

    return results()
