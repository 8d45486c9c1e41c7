"""The commands about an existing cache: cluster, verify and info."""

import json
from pathlib import Path
from typing import Annotated

import typer

from commands.console import bar, progress, say, show
from commands.options import Given, Json, options
from data_cache.errors import UserError
from experiments.config import VerifyConfig
from pipeline.config import ClusterConfig


@options(ClusterConfig)
def cluster(given: Given, as_json: Json = False) -> None:
    """Cluster the cached dense tokens again, without CLIP, into a new mask set. Options default to those of stage 1."""
    config = ClusterConfig(**given)
    from data_cache.reader import Cache
    from pipeline.recluster import recluster

    images = Cache(config.cache).layout.images
    with progress("clustering", images, "images", "finished shards are kept") as advance:
        done = recluster(config, advance, say)
    report = {"cache": str(config.cache), "masks": config.name, "clustered": done}
    show(report if as_json else f"{config.cache}: {done} images in {config.name}")


@options(VerifyConfig)
def verify(given: Given, as_json: Json = False) -> None:
    """Read every file of a cache and list the damaged ones; compare views with the live teacher."""
    config = VerifyConfig(**given)
    from experiments import verification

    interrupted = "shards under repair count as not done" if config.repair else "nothing was written"
    verdict = verification.verify(config, bar(interrupted))
    show(verdict.as_json() if as_json else verdict.lines)
    if verdict.bad:
        raise UserError(
            f"{config.cache}: {len(verdict.bad)} findings; --repair makes damaged shards again, `precompute` (or "
            "`cluster`, for mask sets other than default) finishes what is not done"
        )


def info(cache: Annotated[Path, typer.Argument(help="A cache.")], as_json: Json = False) -> None:
    """Print what a cache holds, how much of it is done, and what failed."""
    from data_cache.reader import Cache

    about = Cache(cache).describe()
    show(about if as_json else [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in about.items()])
