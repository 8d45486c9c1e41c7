"""The plan of a run: checks everything before the first image is encoded, and computes what the run will cost."""

import os
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
from data_cache.datasets.paired_files import MAX_CLASSES
from data_cache.errors import UsageError, UserError
from data_cache.fingerprint import Fingerprint, hash_names
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.reader import Cache
from data_cache.source_dataset import check_images_unchanged
from data_cache.splits import make_split
from data_cache.system.files import check_free_space, nearest_existing
from data_cache.writer import CacheWriter
from pipeline.config import PrecomputeConfig
from pipeline.dask.cluster import resolve_on_cluster
from pipeline.dask.run import Workers
from pipeline.encode_job import EncodeJob, load_clip
from pipeline.masks.masker import Masker
from pipeline.masks.model import ModelSettings
from pipeline.recluster import ClusterJob
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
    masks: ClusterJob | None = None
    """The mask set of another vision model, which follows CLIP's features."""
    masks_images: int = 0
    """Number of images to encode with that model."""

    @property
    def work(self) -> int:
        """Images to encode, counted once per model."""
        return self.images + self.masks_images

    @cached_property
    def warnings(self) -> list[str]:
        """What is wrong with the classes' text features, one sentence per problem."""
        return text_problems(self.texts.classes, self.texts.features, self.unknown)

    @property
    def bytes(self) -> dict[str, int]:
        """Bytes still to be written, uncompressed, per group of arrays."""
        layout = self.job.layout
        sizes = bytes_per_image(layout, self.job.masker.dtype)
        total = {part: size * self.images for part, size in sizes.items()}
        if self.masks:
            own = bytes_per_image(layout, self.masks.masker.dtype, layout.of_masks(self.masks.attributes))
            total = {part: size + own[part] * self.masks_images for part, size in total.items()}
        return total


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
    if len(dataset.classes) > MAX_CLASSES:
        raise UsageError(
            f"--dataset {dataset.name}: its {len(dataset.classes)} classes do not fit into the 8-bit label maps of "
            "training; it serves for `evaluate` only"
        )
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
    masks = _model_masks(job, clip.image_size, device, workers.out_of_process) if config.masks_from else None
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
        masks=masks,
        masks_images=_images_to_mask(job, masks, cache) if masks else 0,
    )
    _check_disk(result)
    return result


def _model_masks(job: EncodeJob, clip_size: int, device: str, out_of_process: bool) -> ClusterJob:
    """The mask set of another vision model. Raises UserError if the model does not load."""
    config, source = job.config, job.config.model_source
    assert source
    local = ModelSettings(source.resolved(), clip_size, job.precision, "cpu" if out_of_process else device)
    model = local.load()
    settings = replace(local, device=config.device if config.scheduler else device, fingerprint=model.fingerprint())
    tokens = {"grid": list(model.grid), "channels": model.channels, "dense": config.masks_dense}
    return ClusterJob(
        cache=config.cache,
        name=config.masks_name or source.mask_name,
        dataset=job.dataset,
        masker=replace(job.masker, grid=model.grid),
        tokens=tokens | {"model": model.fingerprint()},
        model=settings,
    )


def _images_to_mask(job: EncodeJob, masks: ClusterJob, cache: CacheWriter | None) -> int:
    """Number of images that lack masks. Raises UsageError if the cache has other masks of this name."""
    if cache is None or masks.name not in cache.masks:
        return job.layout.images
    cache.check_mask_settings(masks.name, masks.attributes, "--masks-name")
    pending = {*cache.pending_shards(masks.name), *job.pending_shards(cache)}
    done = {s for s in {*range(cache.layout.shards)} - pending if cache.layout.span(s) == job.layout.span(s)}
    return job.layout.images - job.layout.images_in(done)


def _existing(
    config: PrecomputeConfig, dataset: Dataset, clip: Teacher, masker: Masker
) -> tuple[CacheWriter | None, Dataset, tuple[str, ...]]:
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
    if not os.access(folder := nearest_existing(path), os.W_OK):
        raise UserError(f"{path}: {folder} cannot be written; pass --cache PATH on another disk")
    replaced = 0
    if plan.job.config.overwrite and path.is_dir():
        replaced = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    stored = {"--dense": plan.job.layout.dense if plan.images else "none", "--masks-dense": plan.job.config.masks_dense}
    ways = [f"{flag} {way}" for flag, dense in stored.items() if dense != "none" for way in {"int8", "none"} - {dense}]
    smaller = "".join(f"{way}, " for way in sorted(ways)) + "or " * bool(ways)
    advice = f"pass {smaller}--cache on a larger disk"
    check_free_space(path, "the cache", sum(plan.bytes.values()), advice, replaced)
