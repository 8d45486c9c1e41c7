"""The commands for an existing cache: cluster, quality, attention, verify and info."""

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
from experiments.config import AttentionConfig, QualityConfig, VerifyConfig
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
    show(report if as_json else f"{config.cache}: {count(done, 'image')} in {config.name}")


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


@options(AttentionConfig)
def attention(given: Given, as_json: Json = False) -> None:
    """Measure in a minute where GLM's attention goes, how flat it is, and whether CLS tokens agree with labels."""
    config = AttentionConfig(**given)
    from experiments.attention import measure
    from experiments.attention_report import AttentionReport

    report = AttentionReport(measure(config, bar("nothing was written")))
    show(report.as_json() if as_json else report.lines)


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
            f"{config.cache}: {count(len(report.bad), 'finding')}; --repair recomputes damaged shards; the command "
            "that makes a mask set (`precompute` or `cluster`) completes unfinished ones"
        )


def info(cache: Annotated[Path, typer.Argument(help="A cache.")], as_json: Json = False) -> None:
    """Print the content of a cache, its progress, and failed images."""
    from data_cache.description import describe
    from data_cache.reader import Cache

    content = describe(Cache(cache))
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
        "masks": ", ".join(_mask_set(name, one) for name, one in content["mask_sets"].items()),
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


def _mask_set(name: str, content: Mapping[str, Any]) -> str:
    """A mask set's name, and in parentheses its model if that is not CLIP, and what is missing."""
    down, across = content["grid"]
    notes = [] if content["model"] == "CLIP" else [f"{content['model']}, {down} x {across} tokens"]
    notes += [f"{count(pending, 'shard')} not done"] if (pending := content["shards_pending"]) else []
    return f"{name} ({'; '.join(notes)})" if notes else name
