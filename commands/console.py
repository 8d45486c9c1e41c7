"""Prints results on stdout and everything else on stderr.

All output goes through this file, which escapes control characters (`data_cache.messages`).
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.core import TyperGroup
from typer.exceptions import TyperException

from commands.help_page import HelpPage
from data_cache.datasets.base import Dataset
from data_cache.errors import InterruptError, UsageError, UserError, disk_errors
from data_cache.messages import binary_size, count, did_you_mean, duration, printable
from data_cache.survey import NO_LABELS
from data_cache.system.signals import signals_as_interrupts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from pipeline.plan import Plan

PERIOD = 60.0
"""Seconds between two lines of progress where there is no terminal."""


class Commands(HelpPage, TyperGroup):
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
            with signals_as_interrupts():
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
    from rich.text import Text

    # `Text.assemble` does not interpret brackets in file names as markup
    stderr().print(Text.assemble((lead, style), printable(text)), soft_wrap=True, highlight=False)


@cache
def stderr() -> "Console":
    """The console of stderr. There is one, so that lines printed while a progress bar is shown go above the bar."""
    from rich.console import Console

    return Console(stderr=True)


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
    """Print what stage 1 is about to do, if anything, and how many bytes it will write."""
    job, size, source = work.job, work.bytes, work.job.config.clip_source
    echo_note(job.dataset)
    echo(f"{work.labelled} of {len(job.dataset)} images have a label map")
    echo_warnings([*work.warnings, *([] if work.labelled else [NO_LABELS])])
    if not work.work:
        echo(f"nothing to do: {job.cache} is complete")
        return
    parts = ", ".join(f"{part} {binary_size(amount)}" for part, amount in size.items())
    if work.masks:
        model, (down, across) = work.masks.tokens["model"], work.masks.tokens["grid"]
        echo(
            f"masks {work.masks.name} by {model['name']} at {model['image_size']} px, {down} x {across} tokens: "
            f"{count(work.masks_images, 'image')} to do"
        )
    echo(
        f"{source.name} ({source.weights}) on {job.masker.device} in {job.precision}, k-means by "
        f"{job.masker.attributes()['backend']}; {work.images:,} of "
        f"{count(job.layout.images, 'image')} to do in {count(work.shards, 'shard')}; about "
        f"{binary_size(sum(size.values()))} ({parts}) into {job.cache}"
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
    """A progress bar on stderr, or lines where there is no terminal; yields `ShownProgress.advance`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Column

    fixed = partial(Column, no_wrap=True)
    columns = (
        TextColumn(verb, table_column=fixed()),
        BarColumn(bar_width=None, table_column=Column(max_width=12)),  # shrinks until the rest fits
        MofNCompleteColumn(table_column=fixed()),
        TextColumn(f"{{task.fields[rate]}} {unit}/s, ETA {{task.fields[eta]}}", table_column=fixed()),
        TextColumn("{task.fields[note]}", table_column=fixed()),
    )
    with Progress(*columns, console=stderr(), disable=not stderr().is_terminal) as opened:
        opened.add_task(verb, total=total, rate="-", note="", eta="-:--:--")
        shown = ShownProgress(opened, verb, unit)
        try:
            yield shown.advance
        except KeyboardInterrupt:
            raise InterruptError(f"interrupted; {interrupted}") from None
        finally:
            shown.end()


class ShownProgress:
    """Shows progress in a bar, or in lines where there is no terminal."""

    def __init__(self, opened: "Progress", verb: str, unit: str) -> None:
        self._opened, self._verb, self._unit = opened, verb, unit
        self._task = opened.tasks[0]
        self._printed, self._has_lines = time.monotonic(), False

    def advance(
        self,
        amount: int,
        absolute: bool = False,
        note: str = "",
        rate: float | None = None,
        eta: float | None = None,
        line: str = "",
        notices: Sequence[str] = (),
        warning: str = "",
    ) -> None:
        """Show that work was done.

        Args:
            amount: items finished since the last call, or in all if `absolute`.
            absolute: see `amount`.
            note: text after the bar.
            rate: items per second; measured here by default.
            eta: seconds left; measured here by default.
            line: text to print where there is no terminal. Callers that never give one get a line every minute.
            notices: lines to print, with or without a terminal.
            warning: a warning to print, with or without a terminal.

        """
        task = self._task
        self._opened.update(task.id, completed=amount if absolute else task.completed + amount)
        rate, eta = task.speed if rate is None else rate, task.time_remaining if eta is None else eta
        fields = {"rate": "-" if rate is None else f"{rate:.2f}", "eta": "-:--:--" if eta is None else duration(eta)}
        self._opened.update(task.id, note=printable(note), **fields)
        for notice in filter(None, notices):
            echo(notice)
        echo_warnings([warning] if warning else [])
        if not self._opened.disable:
            return
        if line:
            self._has_lines = True
            echo(line)
        elif not self._has_lines and time.monotonic() > self._printed + PERIOD:
            self._print()

    def end(self) -> None:
        """Print the last state where there is no terminal."""
        if self._opened.disable and not self._has_lines:
            self._print()

    def _print(self) -> None:
        task = self._task
        total = "" if task.total is None else f"/{task.total:.0f}"
        speed = f"{task.fields['rate']} {self._unit}/s, ETA {task.fields['eta']} {task.fields['note']}"
        echo(f"{self._verb} {task.completed:.0f}{total} {self._unit}, {speed}".strip())
        self._printed = time.monotonic()
