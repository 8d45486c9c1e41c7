"""Stage 1: images -> cache. Plans the run, lets Dask work off the shards that are not done, and sums up."""

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any

import torch

from data_cache.content import OK, Texts
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import UsageError, UserError, disk_errors
from data_cache.fingerprint import Fingerprint, hash_names
from data_cache.limits import SHARD_IMAGES
from data_cache.lock import writer_lock
from data_cache.schema import DENSE_BYTES, Dense, Layout
from data_cache.splits import make_split
from data_cache.store import MASKS, Cache
from data_cache.views import Cropping
from pipeline.clip import FrozenCLIP, Precision, device_and_precision
from pipeline.encode import Encoder
from pipeline.masks import Masker
from pipeline.prompts import Prompts
from pipeline.reopen import check_replaceable, check_unchanged, discard, fill_in, reopened, same_images
from pipeline.scheduler import agreed, connected
from pipeline.stages import StageTimes
from pipeline.weights import CLIPSource
from pipeline.workers import Note, Workers, absolute, run_shards

_LOADING = Lock()

RECORDED = ("torch", "open_clip_torch", "zarr", "numpy", "pillow", "segmentation-models-pytorch")


FULL = "finished shards are kept: make room, and the same command goes on"


@dataclass(frozen=True)
class Settings:
    """What `precompute` is asked for; names and defaults are those of the command line."""

    dataset: str
    cache: Path
    root: Path | None = None
    split: str = "train"
    clip: CLIPSource = field(default_factory=lambda: CLIPSource("ViT-B-16-quickgelu"))
    precision: str = "auto"
    dense: Dense = "float16"
    kmeans: str = "auto"
    shard: int = 64
    limit: int | None = None
    device: str = "auto"
    unseen: str | None = None
    prompts: str | None = None
    cropping: Cropping = field(default_factory=Cropping)
    extend: bool = False
    overwrite: bool = False
    retry_failed: bool = False
    workers: int = 0
    scheduler: str | None = None
    compile: bool = False

    @property
    def asked(self) -> Prompts:
        """The prompts, or those of the dataset's protocol."""
        return Prompts(self.prompts) if self.prompts else Prompts.of(self.dataset)


@dataclass(frozen=True)
class Job:
    """A resolved run, small enough to travel: each worker builds its own encoder from it, once."""

    source: CLIPSource
    precision: Precision
    device: str
    dataset: Dataset
    masker: Masker
    layout: Layout
    prompts: Prompts
    cropping: Cropping
    cache: Path
    retry: bool = False
    compile: bool = False
    weights: str = ""
    """SHA-256 of the CLIP's weights, once the job has left the process that planned it and has the CLIP in memory."""

    def sent(self, weights: str, device: str, workers: Workers) -> "Job | None":
        """The job as it is given to other processes, and by paths that hold in any folder to other machines."""
        if not workers.elsewhere:
            return None
        job = replace(self, weights=weights, device=device)
        if not workers.scheduler:
            return job
        source = CLIPSource(*self.source.origin.values(), self.source.image_size)
        return replace(job, source=source, dataset=absolute(self.dataset), cache=self.cache.absolute())

    @property
    def encoder(self) -> Encoder:
        """The encoder of this process, for all its threads.

        Raises UserError if the CLIP found here is not the one of the plan.
        """
        with _LOADING:
            return self._encoder

    @cached_property
    def _encoder(self) -> Encoder:
        device = resolve_device(self.device)
        if not self.weights:
            clip = load_clip(self.source, self.precision, str(device), self.compile)
        elif (clip := FrozenCLIP(self.source, self.precision, device, self.compile)).weights_hash != self.weights:
            raise UserError(
                f"--clip-weights {self.source.weights}: {gethostname()} has other weights of that name; give all "
                "machines the same file"
            )
        masker = replace(self.masker, device=str(device))
        return Encoder(clip, self.dataset, masker, self.layout, self.cropping)

    def __getstate__(self) -> dict[str, Any]:
        """What travels: a model and its locks stay where they are."""
        return {name: value for name, value in vars(self).items() if name != "_encoder"}

    def run(self, shard: int, tell: Callable[[int], None]) -> dict[str, float]:
        """Encode and write what is to be done of one shard; returns the seconds each stage took."""
        cache = Cache(self.cache, mode="r+")
        rows, kept = cache.rows_to_do(shard, self.retry), None
        if len(rows) < self.layout.images_in([shard]):
            kept = cache.read_shard(shard)
            cache.undeclare(shard)
        times = StageTimes()
        with self.encoder.shard(shard, rows, tell, times) as data, times("write"):
            if kept:
                fill_in(data, kept, rows)
            cache.write_shard(shard, data, MASKS, rows if kept else None)
        return times.seconds


@dataclass(frozen=True)
class Plan:
    """A run before it starts: what will be done, and what it will cost on disk."""

    job: Job
    cache: Cache | None
    attributes: dict[str, Any]
    images: int
    """Images to encode, of all shards together."""
    shards: int
    """Shards in which they are."""
    added: tuple[str, ...] = ()
    overwrite: bool = False
    workers: Workers = field(default_factory=Workers)
    sent: Job | None = None
    """The job as other processes are given it; None if this one does the work."""
    device: str = ""
    """Where CLIP looks at images: a cluster's device need not be the one this process has."""

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes still to be written for each payload, uncompressed."""
        sizes = self.job.layout.bytes_per_image(1 if self.job.masker.dtype == "uint8" else 2)
        return {part: size * self.images for part, size in sizes.items()}


@dataclass(frozen=True)
class Summary:
    """What a run came to."""

    cache: Path
    images: int
    failures: list[tuple[str, str]]
    encoded: int
    seconds: float
    stages: dict[str, float]

    def check(self, max_failures: float) -> None:
        """Raise UserError if more than this share of the images failed; the cache is complete all the same."""
        failed = len(self.failures)
        if not failed <= max_failures * self.images:
            raise UserError(
                f"{failed} of {self.images} images failed, more than --max-failures {max_failures:g}; mend them and "
                "run again with --retry-failed, or accept them with a higher --max-failures"
            )


@lru_cache(maxsize=1)
def load_clip(source: CLIPSource, precision: Precision, device: str, compiled: bool = False) -> FrozenCLIP:
    """The teacher, once a process."""
    return FrozenCLIP(source, precision, torch.device(device), compiled)


def plan(settings: Settings, note: Note = lambda _: None) -> Plan:
    """Check everything that can be checked before the first image is encoded; writes nothing. `note` hears of waiting.

    Raises:
        UserError, UsageError: missing data, impossible options, a cache made with other settings, a full disk, a Dask
            cluster that cannot be used.

    """
    _check_options(settings)
    if settings.cache.is_symlink():  # what is replaced is what it leads to, not the link
        settings = replace(settings, cache=settings.cache.resolve())
    prompts = settings.asked
    dataset = open_dataset(settings.dataset, settings.root, settings.split, settings.limit)
    split = make_split(settings.dataset, dataset.classes, settings.unseen)
    _check_some(dataset)
    workers = Workers.of(settings.workers, settings.scheduler, settings.device)
    device, precision = _resolved(settings, note)
    # where others look at images, CLIP is asked for text features only here, and a GPU is left to them
    own = "cpu" if workers.elsewhere else device
    clip = load_clip(settings.clip, precision, own, settings.compile)
    masker = Masker(split, clip.grid, kmeans=settings.kmeans, device=device)
    masks = masker.attributes()  # refuses a --kmeans that this machine cannot do
    cache = None if settings.overwrite else reopened(settings.cache)
    if settings.overwrite:
        check_replaceable(settings.cache)
    known, added = len(dataset), ()
    if cache:
        dataset, added = same_images(cache, dataset, settings.extend)
        known -= len(added)
        cache.require(_fingerprint(clip, dataset.limited(known), settings), MASKS, masks, settings.shard)
        check_unchanged(cache, dataset)
    layout = Layout(len(dataset), settings.cropping.count, clip.channels, clip.grid, settings.shard, settings.dense)
    job = Job(
        *(settings.clip, precision, own, dataset.once(), masker, layout, prompts, settings.cropping),
        *(settings.cache, settings.retry_failed, settings.compile),
    )
    attributes = {
        "fingerprint": _fingerprint(clip, dataset, settings),
        "recorded": {
            "root": str(dataset.root.resolve()) if dataset.root else None,
            "clip": settings.clip.origin,
            "versions": {name: version(name) for name in RECORDED},
        },
    }
    images, shards = layout.images, layout.shards
    if cache:
        todo = {shard: cache.rows_to_do(shard, job.retry) for shard in _todo(cache, job.retry)}
        images, shards = sum(map(len, todo.values())) + len(added), len(todo) + layout.shards - cache.layout.shards
    sent = job.sent(clip.weights_hash, settings.device if workers.scheduler else device, workers)
    result = Plan(job, cache, attributes, images, shards, added, settings.overwrite, workers, sent, device)
    _check_disk(result)
    return result


def execute(work: Plan, tell: Callable[[int], None] = lambda _: None, note: Note = lambda _: None) -> Summary:
    """Carry a plan out: create the cache if there is none, and finish its pending shards. `note` hears of the workers.

    Can be killed at any instant and planned again; only unfinished shards are then redone.
    """
    start = time.perf_counter()
    job, encoded = work.job, 0

    def counted(images: int) -> None:
        nonlocal encoded
        encoded += images
        tell(images)

    stages: Counter[str] = Counter()
    with disk_errors(job.cache, FULL), writer_lock(job.cache):
        cache = _opened(work)
        cache.sweep()  # what a killed run left; what a worker of this one leaves is swept at the end
        # asked under the lock: another run may have finished some since the plan
        for clock in run_shards(work.sent or job, _todo(cache, job.retry), counted, work.workers, note):
            stages.update(clock)
        cache.sweep()
    failures = [(name, status) for name, status in cache.statuses() if status != OK]
    seconds = time.perf_counter() - start
    return Summary(job.cache, job.layout.images, failures, encoded, seconds, dict(stages))


def _resolved(settings: Settings, note: Note) -> tuple[str, Precision]:
    """Where CLIP looks at images, and in which precision: what this machine, or the cluster's workers, make of it."""
    if not settings.scheduler:
        return device_and_precision(settings.device, settings.precision)
    with connected(settings.scheduler, note) as client:
        return agreed(client, settings.device, settings.precision)  # type: ignore[return-value]


def _todo(cache: Cache, retry: bool) -> list[int]:
    return sorted({*cache.pending(MASKS), *(cache.failed() if retry else ())})


def _opened(work: Plan) -> Cache:
    job = work.job
    if work.cache is None:
        if job.cache.exists() and not work.overwrite:
            raise UserError(f"{job.cache}: appeared while this run was being planned; run the command again")
        discard(job.cache)
        return _create(work)
    cache = Cache(job.cache, mode="r+")
    if work.added and cache.ids() != list(job.dataset.ids):
        cache.grow(work.added, work.attributes["fingerprint"])
        cache = Cache(job.cache, mode="r+")
    if cache.ids() != list(job.dataset.ids):
        raise UserError(f"{job.cache}: was changed while this run was being planned; run the command again")
    return cache


def _fingerprint(clip: FrozenCLIP, dataset: Dataset, settings: Settings) -> Fingerprint:
    return {
        "clip": clip.fingerprint(),
        "views": settings.cropping.fingerprint(),
        "dense": settings.dense,
        "prompts": settings.asked.name,
        "dataset": {
            "name": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "ids_sha256": hash_names(sorted(dataset.ids)),  # an extended cache has them in another order
            "classes_sha256": hash_names(dataset.classes),
            # what is drawn changes with the code that draws it, and its names do not
            **({} if dataset.root else {"first_sha256": dataset.digest(0)[0]}),
        },
    }


def _create(work: Plan) -> Cache:
    job = work.job
    prompts, dataset = job.prompts, job.dataset
    clip = load_clip(job.source, job.precision, job.device, job.compile)
    words = prompts.words(dataset.name, dataset.classes)
    features = clip.encode_text(words, prompts.templates)
    texts = Texts(prompts.name, dataset.classes, prompts.templates, features)
    return Cache.create(
        job.cache,
        job.layout,
        work.attributes,
        job.dataset.ids,
        (MASKS, job.masker.attributes()),
        texts,
    )


def _check_options(settings: Settings) -> None:
    if not 1 <= settings.shard <= SHARD_IMAGES:
        raise UsageError(f"--shard {settings.shard}: must be from 1 to {SHARD_IMAGES}")
    if settings.dense not in DENSE_BYTES:
        raise UsageError(f"--dense {settings.dense}: choose {', '.join(DENSE_BYTES)}")
    if settings.overwrite and (settings.extend or settings.retry_failed):
        other = "--extend" if settings.extend else "--retry-failed"
        raise UsageError(f"--overwrite: makes everything anew; leave {other} out")


def _check_some(dataset: Dataset, samples: int = 4) -> None:
    # A dataset whose labels are all of the wrong kind should say so now, not after a night
    indices = sorted({round(i * (len(dataset) - 1) / max(samples - 1, 1)) for i in range(samples)})
    errors = []
    for index in indices:
        try:
            dataset.load(index)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(indices):
        raise errors[0]


def _check_disk(work: Plan) -> None:
    folder = next(p for p in (work.job.cache, *work.job.cache.absolute().parents) if p.exists())
    if not os.access(folder, os.W_OK):
        raise UserError(f"{work.job.cache}: {folder} cannot be written; pass --cache PATH on another disk")
    need, free = sum(work.bytes.values()), shutil.disk_usage(folder).free
    if work.overwrite and work.job.cache.is_dir():
        free += sum(file.stat().st_size for file in work.job.cache.rglob("*") if file.is_file())
    if need <= free:
        return
    smaller = "--dense int8, --dense none, or " if work.bytes["dense"] else ""
    cure = f"pass {smaller}--cache on a larger disk"
    raise UserError(
        f"{work.job.cache}: the cache needs about {need / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; {cure}"
    )
