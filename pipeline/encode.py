"""Encodes a shard: CLIP's features and the masks of its images, and for every image whether it worked."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from threading import Event, Lock
from typing import Any

import numpy as np
import torch

from data_cache.callbacks import Progress, ignore
from data_cache.content import OK, Shard
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.layout import Layout
from data_cache.survey import Survey
from data_cache.system.async_copy import AsyncHostCopy
from data_cache.views import Cropping
from pipeline.feeder import Feeder, ImageBatch
from pipeline.masks.masker import Masker
from pipeline.shard_job import StageTimes
from pipeline.teacher.protocol import Teacher

DECODERS = 4
"""Threads that decode images: at most on a CPU, which also runs CLIP, and at least for a GPU."""
AHEAD = 2
"""Batches decoded before CLIP can take them; and the most that a GPU has queued or waiting to be stored."""


@dataclass(frozen=True)
class Encoder:
    """Everything a worker needs to encode shards: of three shards, one is decoded, one encoded and one written."""

    clip: Teacher
    dataset: Dataset
    masker: Masker
    layout: Layout
    cropping: Cropping = field(default_factory=Cropping)
    decode_lock: AbstractContextManager[Any] = field(default_factory=Lock, compare=False, repr=False)
    """Held by the shard whose images are given to the decoders, until the last is and it has `encode_lock`."""
    encode_lock: AbstractContextManager[Any] = field(default_factory=Lock, compare=False, repr=False)
    """Held by the shard whose batches are submitted to CLIP."""
    write_lock: AbstractContextManager[Any] = field(default_factory=Lock, compare=False, repr=False)
    """Held by the shard that is finished and written."""

    @cached_property
    def _decoding(self) -> ThreadPoolExecutor:
        """The threads that decode, for all shards: more of them than cores would only take turns."""
        threads = self.clip.threads
        return ThreadPoolExecutor(max(DECODERS, threads) if self.clip.device.type == "cuda" else min(DECODERS, threads))

    @contextmanager
    def shard(
        self,
        number: int,
        rows: Sequence[int] | None = None,
        progress: Progress = ignore,
        times: StageTimes | None = None,
        observe: Callable[[Survey], None] = lambda _: None,
    ) -> Iterator[Shard]:
        """The content of a shard.

        Only `rows` are encoded, if given; the others stay empty. An image that cannot be read, whose label map does
        not fit, or whose features overflow float16 becomes a failure with its reason; it never stops the others.

        Images are decoded ahead of CLIP, in threads. Batches are encoded and then clustered by
        `Teacher.max_concurrent_batches` threads, and a few more for a GPU, so that its queue is never empty. While
        the caller uses the content, CLIP encodes the next shard, which is yielded only afterwards, and the one after
        that is decoded: shards keep their order, and the features of at most two are in memory.

        Args:
            number: the shard.
            rows: those of its images to encode; all by default.
            progress: counts images done.
            times: collects the seconds of each stage.
            observe: gets the survey of each image that was read.

        """
        span, times = self.layout.span(number), times or StageTimes()
        rows = range(span.stop - span.start) if rows is None else rows
        gpu = self.clip.device.type == "cuda"
        pool_size = self.clip.max_concurrent_batches + (AHEAD if gpu else 0)
        feeder = Feeder(self.dataset, self.cropping, self.masker.ignored, self.clip.image_size, self.clip.batch, gpu)
        ahead = self.clip.max_concurrent_batches + AHEAD
        with (
            ExitStack() as finish,
            feeder.batches(self._decoding, self.decode_lock, rows, span.start, ahead, times) as batches,
            ThreadPoolExecutor(pool_size) as encoding,
        ):
            unfinished: deque[Future[int]] = deque()
            stopped = Event()
            try:
                with self.encode_lock:
                    progress(0)  # raises if this was canceled while it waited
                    shard = Shard.blank(self.layout, span.stop - span.start, self.masker.dtype)
                    for batch in batches:
                        with times("wait"):
                            readable = batch.readable
                        for image in readable.values():
                            observe(image.survey)
                        unfinished.append(encoding.submit(self._fill, shard, batch, times, stopped))
                        while unfinished and (len(unfinished) > pool_size or unfinished[0].done()):
                            progress(unfinished.popleft().result())
                    finish.enter_context(self.write_lock)
                for future in unfinished:
                    progress(future.result())
            except BaseException:
                stopped.set()
                raise
            self._conclude(shard, rows)
            yield shard

    def _fill(self, shard: Shard, batch: ImageBatch, times: StageTimes, stopped: Event) -> int:
        """Encode and cluster each view of a batch into the shard; returns how many images it has."""
        for row, image in zip(batch.rows, batch.images, strict=True):
            if isinstance(image, UserError):
                shard.status[row] = str(image)
            else:
                shard.size[row], (shard.content_hash[row], shard.label_hash[row]) = image.size, image.digest
        for view in range(self.layout.views if batch.readable else 0):
            if stopped.is_set():
                break
            self._store(shard, batch, view, self._encode(batch, view, times), times)
        return len(batch.rows)

    @torch.inference_mode()
    def _encode(self, batch: ImageBatch, view: int, times: StageTimes) -> AsyncHostCopy:
        """CLIP's features of a view of a batch; a GPU also clusters them, if the masker runs there."""
        count = len(batch.rows)
        # the whole batch, empty slots included: an unreadable image must not change the rounding of the others,
        # and a compiled CLIP must see batches of one size
        with self.clip.compute_slot(), times("encode"):
            features = self.clip.forward(batch.pixels[view])
            results = {"finite": features.finite(), "cls": features.cls}
            if self.masker.asynchronous:
                ignored = torch.from_numpy(batch.ignored(view))
                ignored = ignored.pin_memory() if self.clip.device.type == "cuda" else ignored
                results["fused"] = self.masker.fuse_on_device(features.dense[:count], ignored)
            if self.layout.dense != "none" or not self.masker.asynchronous:
                results["dense"] = features.dense
            return AsyncHostCopy({name: result[:count] for name, result in results.items()})

    def _store(self, shard: Shard, batch: ImageBatch, view: int, copies: AsyncHostCopy, times: StageTimes) -> None:
        """Store the features of a view of a batch, and cluster them unless a GPU has."""
        slots, images = np.array(list(batch.readable)), batch.readable.values()
        rows = np.array(batch.rows)[slots]
        with times("encode"):  # this waits for a GPU
            results = copies.arrays()
        finite = results["finite"][slots]
        for row in rows[~finite]:
            shard.status[row] = "CLIP's features are not finite in float16"
        shard.cls[rows, view] = results["cls"][slots]
        shard.box[rows, view] = [image.views[view].box for image in images]
        shard.flip[rows, view] = [image.views[view].flip for image in images]
        if shard.dense is not None:
            for row, slot in zip(rows, slots, strict=True):  # arrays of indices would copy the tokens twice
                shard.dense[row, view] = results["dense"][slot]
        if finite.any():
            # on a CPU clustering takes one of CLIP's slots; a GPU must not wait for it
            with self.clip.compute_slot() if self.clip.device.type == "cpu" else nullcontext(), times("cluster"):
                if "fused" in results:
                    masks = self.masker.to_stored(results["fused"][slots[finite]])
                else:
                    masks = self.masker.masks(results["dense"][slots[finite]], batch.ignored(view)[slots[finite]])
            shard.label[rows[finite], view], shard.count[rows[finite], view] = masks

    def _conclude(self, shard: Shard, rows: Sequence[int]) -> None:
        for row in rows:
            if shard.status[row]:
                shard.clear(row)
            else:
                shard.status[row] = OK
