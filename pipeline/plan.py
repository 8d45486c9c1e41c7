"""The plan of a run: checks everything before the first image is encoded, and computes what the run will cost."""

import os
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_cache.arrays import bytes_per_image
from data_cache.callbacks import Log, ignore
from data_cache.content import Texts, text_problems
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.fingerprint import Fingerprint, hash_names
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.reader import Cache
from data_cache.source_dataset import check_images_unchanged
from data_cache.splits import make_split
from pipeline.config import PrecomputeConfig
from pipeline.dask.cluster import resolve_on_cluster
from pipeline.dask.run import Workers
from pipeline.encode_job import EncodeJob, load_clip
from pipeline.masks.masker import Masker
from pipeline.reopen import check_replaceable, match_images, open_existing
from pipeline.teacher.clip import device_and_precision
from pipeline.teacher.protocol import Teacher

RECORDED_LIBRARIES = ("torch", "open_clip_torch", "zarr", "numpy", "pillow", "segmentation-models-pytorch")


@dataclass(frozen=True)
class Plan:
    """A run before it starts: what it will do, and how much disk space it needs."""

    job: EncodeJob
    workers: Workers
    cache: Cache | None
    """The cache to resume; None to create one."""
    attributes: dict[str, Any]
    texts: Texts
    """Text features of the classes."""
    unknown: tuple[str, ...]
    """Classes with words that CLIP never learned."""
    added: tuple[str, ...]
    """Names of images that `--extend` adds."""
    images: int
    """Number of images to encode."""
    shards: int
    """Number of shards that contain them."""
    labelled: int
    """Number of images of the dataset that have a label map."""

    @cached_property
    def warnings(self) -> list[str]:
        """What is wrong with the classes' text features, one sentence per problem."""
        return text_problems(self.texts.classes, self.texts.features, self.unknown)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes still to be written, uncompressed, per group of arrays."""
        sizes = bytes_per_image(self.job.layout, self.job.masker.dtype)
        return {part: size * self.images for part, size in sizes.items()}


def plan(config: PrecomputeConfig, log: Log = ignore) -> Plan:
    """Check everything that can be checked before the first image is encoded. Writes nothing.

    `log` receives a line if this waits for a worker of a Dask cluster.

    Raises:
        UserError, UsageError: missing data, invalid options, a cache made with other settings, a full disk, a Dask
            cluster that cannot be used.

    """
    if config.cache.is_symlink():  # --overwrite replaces the link's target, not the link
        config = replace(config, cache=Path(os.path.realpath(config.cache)))
    dataset = open_dataset(config.dataset, config.root, config.split, config.limit)
    split = make_split(config.dataset, dataset.classes, config.unseen)
    _check_readable(dataset)
    workers = Workers.of(config.workers, config.scheduler, config.device)
    device, precision = (
        resolve_on_cluster(config.scheduler, config.device, config.precision, log)
        if config.scheduler
        else device_and_precision(config.device, config.precision)
    )
    # if other processes encode, CLIP computes only text features here and leaves the GPU to them
    local_device = "cpu" if workers.out_of_process else device
    clip = load_clip(config.clip_source, precision, local_device, config.compile, config.dense_recipe)
    masker = Masker(split, clip.grid, kmeans=config.kmeans, device=device)
    masker.attributes()  # raises if this machine cannot run this --kmeans
    cache, dataset, added = _existing(config, dataset, clip, masker)
    shard = cache.layout.shard if cache else config.shard_on(device)
    layout = Layout(len(dataset), config.views, clip.channels, clip.grid, shard, config.dense)
    weights_hash = clip.weights_hash if workers.out_of_process else ""
    job = EncodeJob(config, dataset.uncached(), precision, masker, layout, weights_hash)
    images, shards = layout.images, layout.shards
    if cache:
        rows = {shard: cache.rows_to_encode(shard, config.retry_failed) for shard in job.pending_shards(cache)}
        images, shards = sum(map(len, rows.values())) + len(added), len(rows) + layout.shards - cache.layout.shards
    result = Plan(
        job=job,
        workers=workers,
        cache=cache,
        attributes=_attributes(config, dataset, clip),
        texts=cache.texts() if cache else _texts(config, dataset, clip),
        unknown=clip.unknown_names(dataset.classes),
        added=added,
        images=images,
        shards=shards,
        labelled=sum(map(dataset.has_label, range(len(dataset)))),
    )
    _check_disk(result)
    return result


def _existing(
    config: PrecomputeConfig, dataset: Dataset, clip: Teacher, masker: Masker
) -> tuple[Cache | None, Dataset, tuple[str, ...]]:
    """The cache to resume, if any; the dataset in its order, new images last; and the names of the new images."""
    if config.overwrite:
        check_replaceable(config.cache)
        return None, dataset, ()
    if (cache := open_existing(config.cache)) is None:
        return None, dataset, ()
    dataset, added = match_images(cache, dataset, config.extend)
    known = dataset.subset(range(len(dataset) - len(added)))
    cache.check_settings(_fingerprint(config, known, clip), DEFAULT_MASKS, masker.attributes(), config.shard)
    check_images_unchanged(cache, dataset)
    return cache, dataset, added


def _attributes(config: PrecomputeConfig, dataset: Dataset, clip: Teacher) -> dict[str, Any]:
    """The fingerprint, and what the cache records without comparing it: paths and library versions."""
    return {
        "fingerprint": _fingerprint(config, dataset, clip),
        "recorded": {
            "root": str(dataset.root.resolve()) if dataset.root else None,
            "clip": dict(clip.origin),
            "versions": {name: version(name) for name in RECORDED_LIBRARIES},
        },
    }


def _fingerprint(config: PrecomputeConfig, dataset: Dataset, clip: Teacher) -> Fingerprint:
    return {
        "clip": clip.fingerprint(),
        "views": config.cropping.fingerprint(),
        "dense": config.dense,
        "prompts": config.prompt_set.name,
        "dataset": {
            "name": dataset.name,
            "split": dataset.split,
            "images": len(dataset),
            "ids_sha256": hash_names(sorted(dataset.ids)),  # an extended cache has another order
            "classes_sha256": hash_names(dataset.classes),
            # synthetic images change with the code that draws them, but their names do not
            **({} if dataset.root else {"first_sha256": dataset.digest(0)[0]}),
        },
    }


def _texts(config: PrecomputeConfig, dataset: Dataset, clip: Teacher) -> Texts:
    prompts = config.prompt_set
    names = prompts.class_names(dataset.name, dataset.classes)
    return Texts(prompts.name, dataset.classes, prompts.templates, clip.encode_text(names, prompts.templates))


def _check_readable(dataset: Dataset, samples: int = 4) -> None:
    # if all label maps are of the wrong kind, fail now and not after hours of encoding
    indices = sorted({round(i * (len(dataset) - 1) / max(samples - 1, 1)) for i in range(samples)})
    errors = []
    for index in indices:
        try:
            dataset.load(index)
        except UserError as error:
            errors.append(error)
    if len(errors) == len(indices):
        raise errors[0]


def _check_disk(plan: Plan) -> None:
    path = plan.job.cache
    folder = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not os.access(folder, os.W_OK):
        raise UserError(f"{path}: {folder} cannot be written; pass --cache PATH on another disk")
    need, free = sum(plan.bytes.values()), shutil.disk_usage(folder).free
    if plan.job.config.overwrite and path.is_dir():
        free += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if need <= free:
        return
    smaller = "--dense int8, --dense none, or " if plan.bytes["dense"] else ""
    raise UserError(
        f"{path}: the cache needs about {need / 2**30:.2f} GiB and {free / 2**30:.2f} GiB are free; pass {smaller}"
        "--cache on a larger disk"
    )
