"""The command line (`python cli.py --help`): registers the commands and prints errors in one line."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from clipteacher import __version__
from commands import (
    cache_commands,
    experiment_commands,
    figure_commands,
    folder_commands,
    share_commands,
    stage_commands,
    student_commands,
)
from commands.console import Commands, echo_error, escape_unencodable_output, parser_error
from commands.help_page import Command
from data_cache.errors import UsageError, UserError, explain_os_error

app = typer.Typer(
    name="clipteacher",
    cls=Commands,
    help="Train zero-shot semantic segmenters from a frozen CLIP, offline (CLIPTeacher, arXiv 2310.02296).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


for command in (
    folder_commands.init,
    *(stage_commands.precompute, stage_commands.train, stage_commands.evaluate),
    *(cache_commands.cluster, cache_commands.quality, cache_commands.attention),
    *(cache_commands.verify, cache_commands.info),
    *(experiment_commands.demo, experiment_commands.reproduce, experiment_commands.ablate),
    *(figure_commands.show, figure_commands.report),
    *(student_commands.predict, student_commands.export),
    *(share_commands.push, share_commands.pull),
):
    app.command(cls=Command)(command)


def _check_completion(argv: Sequence[str]) -> None:
    """Raise UsageError if completion is installed for a script: shells complete the arguments of commands only."""
    if argv[1:2] in (["--install-completion"], ["--show-completion"]) and Path(argv[0]).suffix == ".py":
        raise UsageError(f"{argv[1]}: completes the installed command; run `clipteacher {argv[1]}`")


def main() -> None:
    """Run the command line. A UserError becomes one line on stderr and exit status 1 or 2."""
    escape_unencodable_output()
    # after an interrupt, Dask logs lost connections with tracebacks, also in worker processes
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")
    try:
        _check_completion(sys.argv)
        sys.exit(app(standalone_mode=False))
    except UserError as error:
        echo_error(error)
        sys.exit(error.exit_code)
    except TyperException as error:
        if message := parser_error(error):
            echo_error(message)
        sys.exit(error.exit_code)
    except OSError as error:
        # for example, a file in place of a folder
        echo_error(explain_os_error(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
