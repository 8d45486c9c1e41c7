"""The commands for an existing cache: cluster, quality, verify and info."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from commands.console import bar, echo, progress, show
from commands.options import Given, Json, options
from data_cache.errors import UserError
from data_cache.messages import binary_size, count
from data_cache.paths import figure_file, run_folder
from data_cache.system.atomic import atomic_write
from experiments.config import QualityConfig, VerifyConfig
from pipeline.config import ClusterConfig


@options(ClusterConfig)
def cluster(given: Given, as_json: Json = False) -> None:
    """Cluster cached dense tokens again, without CLIP, into a new mask set. Options default to those of stage 1."""
    config = ClusterConfig(**given)
    from data_cache.reader import Cache

    images = Cache(config.cache).layout.images  # a misspelled path is refused before torch is imported
    from pipeline.recluster import recluster

    with progress("clustering", images, "images", "finished shards are kept") as advance:
        done = recluster(config, advance, echo)
    report = {"cache": str(config.cache), "masks": config.name, "clustered": done}
    show(report if as_json else f"{config.cache}: {done} images in {config.name}")


@options(QualityConfig)
def quality(given: Given, as_json: Json = False) -> None:
    """Measure masks and dense tokens where labels exist, and draw the best and the worst images."""
    config = QualityConfig(**given)
    from experiments.quality import quality as measure

    report = measure(config, bar("nothing was written"))
    files = []
    for cache in report.caches:
        if cache.figure is not None:
            files.append(figure_file(run_folder(cache.path), "quality"))
            with atomic_write(files[-1]) as draft:
                cache.figure.to_image().save(draft, "PNG", optimize=True)
    show(report.as_json() | {"figures": [*map(str, files)]} if as_json else [*report.lines, *map(str, files)])


@options(VerifyConfig)
def verify(given: Given, as_json: Json = False) -> None:
    """Read every file of a cache and list the damaged ones; compare views with the live teacher."""
    config = VerifyConfig(**given)
    from data_cache.reader import Cache

    Cache(config.cache)
    from experiments import verification

    interrupted = "shards under repair count as not done" if config.repair else "nothing was written"
    report = verification.verify(config, bar(interrupted))
    show(report.as_json() if as_json else report.lines)
    if report.bad:
        raise UserError(
            f"{config.cache}: {len(report.bad)} findings; --repair recomputes damaged shards, `precompute` (or "
            "`cluster`, for mask sets other than default) completes unfinished ones"
        )


def info(cache: Annotated[Path, typer.Argument(help="A cache.")], as_json: Json = False) -> None:
    """Print the content of a cache, its progress, and failed images."""
    from data_cache.reader import Cache

    content = Cache(cache).describe()
    show(content if as_json else _lines(content))


def _lines(content: Mapping[str, Any]) -> list[str]:
    """The content of a cache for readers: a line per entry, sizes in units, and a line per failed image."""
    failures, size = content["failures"], content["bytes"]
    entries = {
        "cache": content["path"],
        "dataset": content["dataset"],
        "images": f"{content['done']:,} of {content['images']:,} done, {content['failed']:,} failed; "
        f"{count(content['views'], 'view')} per image",
        "shards": f"{content['shards_done']:,} of {content['shards']:,} done",
        "clip": f"{content['clip']}, weights {content['weights_sha256'][:12]}",
        "masks": ", ".join(content["masks"]),
        "unseen": "; ".join(
            (f"{name}: " if len(content["masks"]) > 1 else "") + (", ".join(classes) or "none")
            for name, classes in content["unseen"].items()
        ),
        "size": f"{binary_size(sum(size.values()))}: "
        + ", ".join(f"{part} {binary_size(amount)}" for part, amount in size.items()),
    }
    return [
        *(f"{name:9}{value}" for name, value in entries.items()),
        *(f"failed   {name}: {reason}" for name, reason in failures.items()),
    ]
