"""The command that prepares a folder of your own images: init."""

from commands.console import bar, echo, echo_failures, echo_note, echo_warnings, show
from commands.options import Given, Json, options
from experiments.config import InitConfig


@options(InitConfig)
def init(given: Given, as_json: Json = False) -> None:
    """List the images and labels of your own folder, convert annotations, and write classes.txt if it is missing."""
    config = InitConfig(**given)
    from experiments.init import init as run

    report = run(config, bar("rerun the same command"))
    show(report.as_json() if as_json else report.lines)
    for split in report.listing.splits:
        echo_note(split.dataset)
    echo_warnings([*report.listing.warnings, *(f"{name}: {problem}" for name, problem in report.skipped.items())])
    echo_failures(report.listing.failures)
    echo(report.next_step, "next: ", "green")
    report.check()
