"""The commands that run whole experiments: parse, call one function, print."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from experiments.console import bar, say, say_note, show
from experiments.options import (
    CACHE,
    CLIP,
    DATA,
    LOSSES,
    RUN,
    Dense,
    Device,
    Failures,
    ImageSize,
    Json,
    Limit,
    Root,
    Student,
    Views,
    ViewSeed,
    Weights,
    given_of,
    setting,
)


def demo(
    out: Annotated[Path, typer.Option(help="Where caches, runs and the picture go.", rich_help_panel=RUN)] = Path(
        "runs/demo"
    ),
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also without GLM, without PLM, and CLIP alone.", rich_help_panel=RUN),
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Training scenes; 2000 by default.", rich_help_panel=DATA)] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Parameter updates; some minutes' worth by default.", rich_help_panel=RUN)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the student.", rich_help_panel=RUN)] = 0,
    as_json: Json = False,
) -> None:
    """Show the whole method at work on drawn scenes, offline, in minutes: precompute, train, evaluate."""
    from experiments.demo import ALL_VARIANTS, STUDENT, Demo, run

    bars = bar("the same command goes on")
    student = replace(STUDENT, seed=seed, iterations=STUDENT.iterations if iterations is None else iterations)
    images = Demo.images if limit is None else limit
    report = run(Demo(out, student, images, variants=ALL_VARIANTS if compare else ()), bars)
    show(report.as_json() if as_json else str(report))


def reproduce(
    benchmark: Annotated[str, typer.Argument(help="voc, context, coco or context-ablation.")],
    student: Student = None,
    root: Root = None,
    test_on: Annotated[
        str | None,
        typer.Option(help="Evaluate on voc or context instead: a row of Table 2.", rich_help_panel=DATA),
    ] = None,
    test_root: Annotated[Path | None, typer.Option(help="Root of that dataset.", rich_help_panel=DATA)] = None,
    limit: Limit = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    image_size: ImageSize = None,
    views: Views = None,
    view_seed: ViewSeed = None,
    dense: Dense = None,
    encoder_weights: Annotated[str | None, setting("encoder_weights", "Student", preset=True)] = None,
    size: Annotated[int | None, setting("size", "Student", preset=True)] = None,
    iterations: Annotated[int | None, setting("iterations", RUN, preset=True)] = None,
    batch_size: Annotated[int | None, setting("batch_size", RUN, preset=True)] = None,
    loss_stride: Annotated[int | None, setting("loss_stride", LOSSES, preset=True)] = None,
    checkpoint_every: Annotated[int | None, setting("checkpoint_every", RUN, preset=True)] = None,
    seed: Annotated[int | None, setting("seed", RUN, preset=True)] = None,
    workers: Annotated[int | None, setting("workers", RUN, preset=True)] = None,
    device: Device = None,
    cache: Annotated[Path | None, typer.Option(help="Of its own by default.", rich_help_panel=CACHE)] = None,
    max_failures: Failures = 0.01,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", rich_help_panel=RUN)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the plan.", rich_help_panel=RUN)] = False,
    as_json: Json = False,
) -> None:
    """Precompute, train and evaluate a row of the paper's tables, and print the paper's row beside it."""
    ours = (
        "benchmark",
        "student",
        "root",
        "test_on",
        "test_root",
        "limit",
        "max_failures",
        "out",
        "dry_run",
        "as_json",
    )
    given = given_of(locals(), *ours, "ours")
    from experiments import reproduce as rows

    wanted = rows.Reproduction(benchmark, student, root, out, test_on, test_root, limit, max_failures, given)
    if dry_run:
        told = rows.dry_run(wanted, say_note)
        show(told if as_json else "\n".join(f"{name}: {json.dumps(value)}" for name, value in told.items()))
        return
    row = rows.reproduce(wanted, bar("the same command goes on"), say_note)
    show(row.as_json() if as_json else str(row))


def ablate(
    cache: Annotated[
        Path | None, typer.Option(help="A cache with dense tokens; the demo's own by default.", rich_help_panel=DATA)
    ] = None,
    root: Root = None,
    config: Annotated[
        Path | None, typer.Option(help="The full method's settings; the demo's, or the defaults.", rich_help_panel=RUN)
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="ROW,...", help="Which rows; all by default.", rich_help_panel=RUN)
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each row.", rich_help_panel=RUN)] = 3,
    iterations: Annotated[int | None, setting("iterations", RUN, preset=True)] = None,
    tested: Annotated[int | None, typer.Option(help="Only the first N test images.", rich_help_panel=DATA)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at a time, a thread each.", rich_help_panel=RUN)] = 1,
    out: Annotated[Path, typer.Option(help="Folder of all runs.", rich_help_panel=RUN)] = Path("runs/ablate"),
    as_json: Json = False,
) -> None:
    """Train and measure the rows of the paper's ablation tables, and our own switches, over several seeds."""
    from experiments import ablate as ablations
    from experiments.demo import STUDENT, Demo
    from experiments.stages import Clock, cached
    from trainer.config import read_config

    if cache is None:
        cache = cached(Demo(out).settings("train", Demo.images), bar("the same command goes on"), Clock())
        full = read_config(config, cache=cache) if config else replace(STUDENT, cache=str(cache))
    else:
        full = read_config(config, cache=cache)
    full = replace(full, iterations=full.iterations if iterations is None else iterations)
    names = tuple(ablations.VARIANTS) if rows is None else tuple(row.strip() for row in rows.split(","))
    told = ablations.ablate(ablations.Ablation(full, out, names, seeds, tested, root), jobs, say)
    show(told if as_json else ablations.markdown(told))
