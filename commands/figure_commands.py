"""The commands that write pictures: show and report."""

from pathlib import Path
from typing import Annotated

import typer

from commands.console import bar, say, say_note
from commands.console import show as print_result
from commands.options import Given, Json, options
from data_cache.errors import UsageError
from data_cache.system.atomic import atomic_write
from experiments.config import ATTENTION, PREDICTIONS, ReportConfig, ShowConfig

Out = Annotated[Path | None, typer.Option(help="The file to write.")]


@options(ShowConfig)
def show(
    given: Given,
    attention: Annotated[
        bool, typer.Option("--attention", help="Of a run: GLM's attention over training images.")
    ] = False,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Of a run (the default): ground truth and prediction.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Draw a figure of the paper: masks of a cache (6), a student's attention (5) or predictions (7). Writes a PNG."""
    if attention and predictions:
        raise UsageError("--attention and --predictions: one figure at a time")
    config = ShowConfig(**given, figure=ATTENTION if attention else PREDICTIONS if predictions else None)
    from experiments.show import default_file, figure_of

    file = _writable(out or default_file(config), ".png")
    figure = figure_of(config, say_note)
    with atomic_write(file) as draft:
        figure.to_image().save(draft, "PNG", optimize=True)
    for warning in figure.warnings:
        say(warning, "warning: ", "yellow")
    print_result({"out": str(file), "images": [row.caption for row in figure.rows]} if as_json else str(file))


@options(ReportConfig)
def report(given: Given, out: Out = None, as_json: Json = False) -> None:
    """Evaluate a run and put all about it on one HTML page: settings, curves, metrics, pictures."""
    config = ReportConfig(**given)
    from experiments.history import run_in
    from experiments.report import gather
    from experiments.report_page import page

    file = _writable(out or run_in(config.run) / "report.html", ".html")
    gathered = gather(config, bar("nothing was written"), say_note)
    with atomic_write(file) as draft:
        draft.write_text(page(gathered), encoding="utf-8")
    for missing in gathered.missing:
        say(missing, "not shown: ", "yellow")
    print_result({"out": str(file), "missing": gathered.missing} if as_json else str(file))


def _writable(path: Path, suffix: str) -> Path:
    """The file of --out. Raises UsageError for another suffix or a folder."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"--out {path}: must end in {suffix}")
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; name a file")
    return path
