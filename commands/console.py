"""What the command line prints: results on stdout, all else on stderr, and nothing that a terminal would obey.

All that is printed goes through here, where what came from outside is made fit for it (`data_cache.messages`).
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

from data_cache.datasets.base import Dataset
from data_cache.errors import InterruptError, UserError, disk_errors
from data_cache.messages import printable
from data_cache.system.signals import sigterm_as_interrupt

if TYPE_CHECKING:
    from pipeline.plan import Plan


class Commands(TyperGroup):
    """Commands that Ctrl-C and SIGTERM end in one line, also where no progress bar knows what is kept."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            with sigterm_as_interrupt():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptError("interrupted; rerun the same command to resume or to start again") from None


def say(text: str, lead: str = "", style: str = "") -> None:
    """A line on stderr; `lead` in a style of rich."""
    from rich.console import Console
    from rich.text import Text

    # assembled, not marked up: a file name may hold brackets
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((lead, style), printable(text)))


def say_error(error: UserError | str) -> None:
    """What a command ends with: a line on stderr, or the few that an error has."""
    first, *more = error.args if isinstance(error, UserError) else [error]
    say(str(first), "error: ", "red")
    for line in more:
        say(str(line))


def say_note(dataset: Dataset) -> None:
    """What a dataset has to say about itself, if anything."""
    for note in dataset.notes:
        say(f"{dataset.name}: {note}", "note: ", "yellow")


def say_warnings(warnings: Iterable[str]) -> None:
    """What is most likely not meant to be so, a line each."""
    for warning in warnings:
        say(warning, "warning: ", "yellow")


def say_failures(failures: Mapping[str, str]) -> None:
    """Why some images failed, a line each."""
    for name, reason in failures.items():
        say(f"{name}: {reason}", "failed ", "red")


def say_plan(work: "Plan") -> None:
    """What stage 1 is about to do, and how many bytes it will write."""
    job, size, source = work.job, work.bytes, work.job.config.clip_source
    say_note(job.dataset)
    say(f"{work.labelled} of {len(job.dataset)} images have a label map")
    say_warnings(work.texts.warnings)
    total = sum(size.values()) / 2**20
    say(
        f"{source.name} ({source.weights}) on {job.masker.device} in {job.precision}, k-means by "
        f"{job.masker.attributes()['backend']}; {work.images} of {job.layout.images} images to do in "
        f"{work.shards} shards; about {total:.1f} MiB "
        f"({', '.join(f'{part} {b / 2**20:.1f}' for part, b in size.items())}) into {job.cache}"
    )


def show(value: str | Sequence[str] | Mapping[str, Any]) -> None:
    """A result on stdout: a line, several, or an object as JSON.

    Raises UserError if it cannot be written. Nobody listens any more behind `| head`: then it goes nowhere.
    """
    if isinstance(value, Mapping):
        # other JSON would not be JSON any more once a terminal without these letters has replaced them
        value = json.dumps(value, ensure_ascii=not speaks_unicode())
    lines = [value] if isinstance(value, str) else value
    try:
        with disk_errors(Path("stdout"), "make room, and run the command again"):
            print("\n".join(map(printable, lines)), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def speaks_unicode() -> bool:
    """Whether stdout takes any letter."""
    return (sys.stdout.encoding or "utf-8").lower().replace("-", "").startswith("utf")


def never_fail_on_letters() -> None:
    """Let stdout write as an escape what its encoding lacks, as stderr does. Called once, before all printing."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def bar(interrupted: str) -> Callable[..., Any]:
    """Progress bars (`data_cache.callbacks.ProgressBar`); Ctrl-C under one says what was `interrupted`."""
    return partial(progress, interrupted=interrupted)


@contextmanager
def progress(verb: str, total: int | None, unit: str, interrupted: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, to a `total` if it is known; yields a call that advances it, by or to an amount."""
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
