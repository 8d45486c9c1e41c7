"""Stage 1: images -> cache. Executes a plan: Dask encodes the pending shards, and the run is summarized."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_cache.callbacks import Log, Progress, ignore
from data_cache.content import OK
from data_cache.errors import UserError, disk_errors
from data_cache.layout import DEFAULT_MASKS
from data_cache.moved import moved_cache_errors
from data_cache.survey import Survey
from data_cache.system.lock import writer_lock
from data_cache.writer import CacheWriter
from pipeline.dask.run import run_shards
from pipeline.plan import Plan
from pipeline.recluster import ClusteredImages, finish_masks
from pipeline.reopen import discard
from pipeline.shard_job import DISK_FULL


@dataclass(frozen=True)
class Summary:
    """The result of a run."""

    cache: Path
    images: int
    failures: list[tuple[str, str]]
    """Name and reason of each image that failed, in this run or an earlier one."""
    encoded: int
    """Number of images that CLIP has encoded in this run."""
    masked: int
    """Number of images that another vision model has encoded in this run."""
    overflowed: list[str]
    """Names of those for which that model gave tokens that are not finite, in some view."""
    seconds: float
    stages: dict[str, float]
    survey: Survey
    """Covers the images that this run has read."""

    def check(self, max_failures: float) -> None:
        """Raise UserError if more than this share of the images failed, or have no tokens of another vision model.

        The cache is complete nevertheless.
        """
        failed = len(self.failures)
        if not failed <= max_failures * self.images:
            raise UserError(
                f"{failed} of {self.images} images failed, more than --max-failures {max_failures:g}; fix them and "
                "run again with --retry-failed, or accept them with a higher --max-failures"
            )
        overflowed = len(self.overflowed)
        if not overflowed <= max_failures * self.images:
            raise UserError(
                f"tokens of --masks-from are not finite in float16 for {overflowed} of {self.images} images, more than "
                f"--max-failures {max_failures:g}; choose another model, or accept this: the mask set is complete"
            )


def execute(plan: Plan, progress: Progress = ignore, log: Log = ignore) -> Summary:
    """Execute a plan: create the cache if there is none, and finish its pending shards, then the other mask set.

    If it is killed, a new plan contains only the unfinished shards. `progress` counts images done (`Plan.work`); `log`
    receives a line about the workers, and a warning if tokens of `--masks-from` overflow.
    """
    start = time.perf_counter()
    job, encoded, masked = plan.job, 0, ClusteredImages(0, [])

    def count(images: int) -> None:
        nonlocal encoded
        encoded += images
        progress(images)

    stages: Counter[str] = Counter()
    survey = Survey()
    with disk_errors(job.cache, DISK_FULL), writer_lock(job.cache):
        cache = create_or_open(plan)
        with moved_cache_errors(job.cache):
            cache.remove_leftovers()  # of a killed run; those of this run are removed at the end
            # read under the lock: another run may have finished some since the plan was made
            for report in run_shards(job, job.pending_shards(cache), count, plan.workers, log):
                stages.update(report.seconds)
                survey += report.survey
            if plan.masks:
                masked = finish_masks(plan.masks, progress, plan.workers, log, "--masks-name")
            cache.remove_leftovers()
            failures = [(name, status) for name, status in cache.statuses() if status != OK]
    seconds = time.perf_counter() - start
    return Summary(job.cache, job.layout.images, failures, encoded, *masked, seconds, dict(stages), survey)


def create_or_open(plan: Plan) -> CacheWriter:
    """Create, extend or open the cache as planned. The caller must hold the writer's lock.

    Raises UserError if another process has changed the cache since the plan was made.
    """
    job = plan.job
    if plan.cache is None:
        if job.cache.exists() and not job.config.overwrite:
            raise UserError(f"{job.cache}: appeared while this run was being planned; run the command again")
        discard(job.cache)
        masks = (DEFAULT_MASKS, job.masker.attributes())
        return CacheWriter.create(job.cache, job.layout, plan.attributes, job.dataset.ids, masks, plan.texts)
    cache = CacheWriter(job.cache)
    if plan.added and cache.ids() != list(job.dataset.ids):
        cache.extend(plan.added, plan.attributes["fingerprint"])
        cache = CacheWriter(job.cache)
    if cache.ids() != list(job.dataset.ids):
        raise UserError(f"{job.cache}: was changed while this run was being planned; run the command again")
    return cache
