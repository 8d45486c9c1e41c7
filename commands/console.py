"""Prints results on stdout and everything else on stderr.

All output goes through this file, which escapes control characters (`data_cache.messages`).
"""

import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup
from typer.exceptions import TyperException

from data_cache.datasets.base import Dataset
from data_cache.errors import InterruptError, UsageError, UserError, disk_errors
from data_cache.messages import did_you_mean, printable
from data_cache.system.signals import sigterm_as_interrupt

if TYPE_CHECKING:
    from pipeline.plan import Plan


class Commands(TyperGroup):
    """Commands that Ctrl-C and SIGTERM end with a one-line message, even outside of a progress bar."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command by name. Raises UsageError with the nearest names for an unknown one."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            nearest = did_you_mean(args[0], self.commands) or f"; the commands are {', '.join(self.commands)}"
            raise UsageError(f"no command named '{args[0]}'{nearest}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with sigterm_as_interrupt():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptError("interrupted; rerun the same command to resume or to start again") from None


def parser_error(error: TyperException) -> UsageError | None:
    """An error of the command line's parser as one line with the nearest names; None if it is a help page.

    typer prints a box of several lines instead.
    """
    context, option = getattr(error, "ctx", None), getattr(error, "option_name", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    see = f"; see `{context.command_path} --help`" if context else ""
    if not hasattr(error, "possibilities"):
        text = error.format_message().removesuffix(".")
        return UsageError(f"{text[:1].lower()}{text[1:]}{see}")
    known = [name for entry in context.command.params for name in (*entry.opts, *entry.secondary_opts)]
    return UsageError(f"no option named {option}{did_you_mean(option, known) or see}")


def echo(text: str, lead: str = "", style: str = "") -> None:
    """Print a line on stderr, with `lead` in a rich style."""
    from rich.console import Console
    from rich.text import Text

    # `Text.assemble` does not interpret brackets in file names as markup
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((lead, style), printable(text)))


def echo_error(error: UserError | str) -> None:
    """Print an error on stderr; some have several lines."""
    first, *more = error.args if isinstance(error, UserError) else [error]
    echo(str(first), "error: ", "red")
    for line in more:
        echo(str(line))


def echo_note(dataset: Dataset) -> None:
    """Print the notes of a dataset."""
    for note in dataset.notes:
        echo(f"{dataset.name}: {note}", "note: ", "yellow")


def echo_warnings(warnings: Iterable[str]) -> None:
    """Print warnings, one per line."""
    for warning in warnings:
        echo(warning, "warning: ", "yellow")


def echo_failures(failures: Mapping[str, str]) -> None:
    """Print failed images with their reasons, one per line."""
    for name, reason in failures.items():
        echo(f"{name}: {reason}", "failed ", "red")


def echo_plan(work: "Plan") -> None:
    """Print what stage 1 is about to do, and how many bytes it will write."""
    job, size, source = work.job, work.bytes, work.job.config.clip_source
    echo_note(job.dataset)
    echo(f"{work.labelled} of {len(job.dataset)} images have a label map")
    echo_warnings(work.texts.warnings)
    total = sum(size.values()) / 2**20
    echo(
        f"{source.name} ({source.weights}) on {job.masker.device} in {job.precision}, k-means by "
        f"{job.masker.attributes()['backend']}; {work.images} of {job.layout.images} images to do in "
        f"{work.shards} shards; about {total:.1f} MiB "
        f"({', '.join(f'{part} {b / 2**20:.1f}' for part, b in size.items())}) into {job.cache}"
    )


def show(value: str | Sequence[str] | Mapping[str, Any]) -> None:
    """Print a result on stdout: a line, several lines, or an object as JSON.

    A closed pipe (`| head`) is ignored. Raises UserError if stdout cannot be written otherwise.
    """
    if isinstance(value, Mapping):
        # escapes by the terminal's encoding would be invalid JSON
        value = json.dumps(value, ensure_ascii=not stdout_is_unicode())
    lines = [value] if isinstance(value, str) else value
    try:
        with disk_errors(Path("stdout"), "make room and rerun the command"):
            print("\n".join(map(printable, lines)), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdout_is_unicode() -> bool:
    """Whether the encoding of stdout has all characters."""
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")


def escape_unencodable_output() -> None:
    """Let stdout escape characters that its encoding lacks, as stderr does. Called once at the start."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def bar(interrupted: str) -> Callable[..., Any]:
    """Progress bars (`data_cache.callbacks.ProgressBar`); on Ctrl-C the message ends with `interrupted`."""
    return partial(progress, interrupted=interrupted)


@contextmanager
def progress(verb: str, total: int | None, unit: str, interrupted: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields a function that advances it by an amount, or to it if `absolute`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.table import Column

    columns = (
        TextColumn(verb, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn(f"{{task.fields[rate]}} {unit}/s, ETA", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=Console(stderr=True)) as opened:
        task = opened.add_task(verb, total=total, rate="-", note="")

        def advance(amount: int, absolute: bool = False, note: str = "") -> None:
            opened.update(task, completed=amount if absolute else opened.tasks[0].completed + amount)
            opened.update(task, note=printable(note))
            speed = opened.tasks[0].speed
            opened.update(task, rate=f"{speed:.2f}" if speed else "-")

        try:
            yield advance
        except KeyboardInterrupt:
            raise InterruptError(f"interrupted; {interrupted}") from None
