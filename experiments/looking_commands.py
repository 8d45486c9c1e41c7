"""The commands for looking at caches and students: parse, call one function, write one file, print its path."""

import math
from pathlib import Path
from typing import Annotated

import typer

from data_cache.errors import UsageError
from experiments.console import bar, say, say_note
from experiments.console import show as tell
from experiments.options import CACHE, DATA, KNOWN, RUN, Device, Json, Limit, Root, given_of


def _finite(value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise UsageError(f"--gamma {value}: must be a number")
    return value


Out = Annotated[Path | None, typer.Option(help="The file to write.", rich_help_panel=RUN)]
Gamma = Annotated[
    float | None,
    typer.Option(
        callback=_finite, help="Added to the logits of classes without labels; 1.5 by default.", rich_help_panel=RUN
    ),
]
Hidden = Annotated[
    str | None,
    typer.Option(metavar="NAMES", help="Unseen classes of another dataset, as for `evaluate`.", rich_help_panel=DATA),
]


def show(
    target: Annotated[Path, typer.Argument(help="A cache, a run's folder, or a checkpoint.")],
    image: Annotated[
        list[str] | None,
        typer.Option(
            metavar="I,...", help="Which image: its place, its id or the end of it. Repeatable.", rich_help_panel=DATA
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(metavar="N", help="The first N images, 4 by default; or as --image.", rich_help_panel=DATA),
    ] = None,
    attention: Annotated[
        bool, typer.Option("--attention", help="Of a run: GLM's attention over training images.", rich_help_panel=RUN)
    ] = False,
    predictions: Annotated[
        bool,
        typer.Option("--predictions", help="Of a run (the default): truth and prediction.", rich_help_panel=RUN),
    ] = False,
    masks: Annotated[
        str | None, typer.Option(help="Name of the mask set; stage 1's by default.", rich_help_panel=CACHE)
    ] = None,
    view: Annotated[
        int | None, typer.Option(min=0, help="Which view of a cached image; 0 is the whole.", rich_help_panel=CACHE)
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="For --attention: the cache, if not where it was.", rich_help_panel=CACHE)
    ] = None,
    dataset: Annotated[str | None, typer.Option(help=f"For --predictions: {KNOWN}", rich_help_panel=DATA)] = None,
    root: Root = None,
    split: Annotated[str | None, typer.Option(help="For --predictions; val by default.", rich_help_panel=DATA)] = None,
    unseen: Hidden = None,
    gamma: Gamma = None,
    side: Annotated[int | None, typer.Option(help="Pixels of a panel's longer side; 192.", rich_help_panel=RUN)] = None,
    device: Device = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Draw a figure of the paper: masks of a cache (6), a student's attention (5) or predictions (7). Writes a PNG."""
    given = given_of(locals(), "target", "attention", "predictions", "out", "as_json")
    if attention and predictions:
        raise UsageError("--attention and --predictions: one figure at a time")
    from experiments.show import ATTENTION, PREDICTIONS, Wanted, figure_of

    figure = ATTENTION if attention else PREDICTIONS if predictions else None
    wanted = Wanted(target, figure, **(given | {"image": tuple(image or ())}))
    file = _file(out or wanted.file, ".png")
    drawn = figure_of(wanted, say_note)
    file.parent.mkdir(parents=True, exist_ok=True)
    drawn.draw().save(file, "PNG", optimize=True)
    for warning in drawn.warnings:
        say(warning, "warning: ", "yellow")
    tell({"out": str(file), "images": [row.caption for row in drawn.rows]} if as_json else str(file))


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder, finished or not; or the demo's.")],
    result: Annotated[
        Path | None,
        typer.Option(
            help="What `evaluate --json` or `reproduce` wrote; else the run is evaluated.", rich_help_panel=DATA
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help=f"To evaluate on; the training's own by default. {KNOWN}", rich_help_panel=DATA)
    ] = None,
    root: Root = None,
    split: Annotated[str | None, typer.Option(help="val by default.", rich_help_panel=DATA)] = None,
    unseen: Hidden = None,
    limit: Limit = None,
    cache: Annotated[
        Path | None, typer.Option(help="Of the training, if not where it was.", rich_help_panel=CACHE)
    ] = None,
    pictures: Annotated[int | None, typer.Option(min=0, help="Images a figure; 6.", rich_help_panel=RUN)] = None,
    gamma: Gamma = None,
    device: Device = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run and set all about it on one page: settings, curves, metrics, pictures. Writes one HTML file."""
    given = given_of(locals(), "run", "out", "as_json")
    from experiments.page import page
    from experiments.report import Wanted, gather

    wanted = Wanted(run, **given)
    file = _file(out or wanted.folder / "report.html", ".html")
    gathered = gather(wanted, bar("nothing was written"), say_note)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(gathered), encoding="utf-8")
    for missing in gathered.missing:
        say(missing, "not shown: ", "yellow")
    tell({"out": str(file), "missing": gathered.missing} if as_json else str(file))


def _file(path: Path, suffix: str) -> Path:
    if path.suffix.lower() != suffix:
        raise UsageError(f"--out {path}: must end in {suffix}")
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; name a file")
    return path
