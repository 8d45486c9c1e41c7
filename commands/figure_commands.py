"""The commands that write figures: show and report."""

from pathlib import Path
from typing import Annotated

import typer

from commands.console import bar, echo, echo_note, echo_warnings
from commands.console import show as print_result
from commands.options import Given, Json, options
from data_cache.errors import UsageError
from data_cache.paths import FIGURES, REPORT
from data_cache.system.atomic import atomic_write
from experiments.config import ATTENTION, PREDICTIONS, ReportConfig, ShowConfig


@options(ShowConfig)
def show(
    given: Given,
    attention: Annotated[
        bool, typer.Option("--attention", help="For a run: GLM's attention over training images.")
    ] = False,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="For a run (the default): ground truth and prediction.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help=f"The file to write; by default {FIGURES}/<figure>.png in the run's folder, which for a cache is "
            "runs/<name of the cache>."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw one of the paper's figures as a PNG: masks of a cache (6), a student's attention (5) or predictions (7)."""
    if attention and predictions:
        raise UsageError("--attention and --predictions: pass only one of them")
    config = ShowConfig(**given, figure=ATTENTION if attention else PREDICTIONS if predictions else None)
    from experiments.show import default_file, figure_of

    file = _check_out(out or default_file(config), ".png")
    figure = figure_of(config, echo_note)
    with atomic_write(file) as draft:
        figure.to_image().save(draft, "PNG", optimize=True)
    echo_warnings(figure.warnings)
    print_result({"out": str(file), "images": [row.caption for row in figure.rows]} if as_json else str(file))


@options(ReportConfig)
def report(
    given: Given,
    out: Annotated[
        Path | None, typer.Option(help=f"The file to write; {REPORT} in the run's folder by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a run and write one HTML page with its settings, curves, metrics and figures."""
    config = ReportConfig(**given)
    from experiments.report import build_report
    from experiments.report_page import page
    from trainer.checkpoint_folders import run_in

    file = _check_out(out or run_in(config.run) / REPORT, ".html")
    content = build_report(config, bar("nothing was written"), echo_note)
    with atomic_write(file) as draft:
        draft.write_text(page(content), encoding="utf-8")
    for missing in content.missing:
        echo(missing, "not shown: ", "yellow")
    print_result({"out": str(file), "missing": content.missing} if as_json else str(file))


def _check_out(path: Path, suffix: str) -> Path:
    """Return the file of --out. Raises UsageError for another suffix or a folder."""
    if path.suffix.lower() != suffix:
        raise UsageError(f"--out {path}: must end in {suffix}")
    if path.is_dir():
        raise UsageError(f"--out {path}: is a folder; name a file")
    return path
