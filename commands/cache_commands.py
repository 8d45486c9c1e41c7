"""The commands for an existing cache: cluster, quality, verify and info."""

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.console import bar, echo, progress, show
from commands.options import Given, Json, options
from data_cache.errors import UserError
from data_cache.paths import figure_file, run_folder
from data_cache.system.atomic import atomic_write
from experiments.config import QualityConfig, VerifyConfig
from pipeline.config import ClusterConfig


@options(ClusterConfig)
def cluster(given: Given, as_json: Json = False) -> None:
    """Cluster cached dense tokens again, without CLIP, into a new mask set. Options default to those of stage 1."""
    config = ClusterConfig(**given)
    from data_cache.reader import Cache
    from pipeline.recluster import recluster

    images = Cache(config.cache).layout.images
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
    show(content if as_json else [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()])
