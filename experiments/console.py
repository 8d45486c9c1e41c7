"""What the command line prints: results on stdout, all else on stderr."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from data_cache.datasets.base import Dataset
from data_cache.errors import InterruptError

if TYPE_CHECKING:
    from pipeline.precompute import Plan


def say(text: str, lead: str = "", style: str = "") -> None:
    """A line on stderr; `lead` in a style of rich."""
    from rich.console import Console
    from rich.text import Text

    # assembled, not marked up: a file name may hold brackets
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((lead, style), text))


def say_note(dataset: Dataset) -> None:
    """What a dataset has to say about itself, if anything."""
    if dataset.note:
        say(f"{dataset.name}: {dataset.note}", "note: ", "yellow")


def say_plan(work: "Plan") -> None:
    """What stage 1 is about to do, and how many bytes it will write."""
    job, size = work.job, work.bytes
    say_note(job.dataset)
    total = sum(size.values()) / 2**20
    say(
        f"{job.source.name} ({job.source.weights}) on {work.device} in {job.precision}, k-means by "
        f"{job.masker.attributes()['backend']}; {work.images} of {job.layout.images} images to do in "
        f"{work.shards} shards; about {total:.1f} MiB "
        f"({', '.join(f'{part} {b / 2**20:.1f}' for part, b in size.items())}) into {job.cache}"
    )


def show(value: Any) -> None:
    """A result on stdout: text as it is, anything else as JSON."""
    print(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def bar(interrupted: str) -> Callable[..., Any]:
    """Progress bars (`experiments.stages.Progress`); Ctrl-C under one says what was `interrupted`."""
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
            opened.update(task, completed=amount if absolute else opened.tasks[0].completed + amount, note=note)
            speed = opened.tasks[0].speed
            opened.update(task, rate=f"{speed:.2f}" if speed else "-")

        try:
            yield advance
        except KeyboardInterrupt:
            raise InterruptError(f"interrupted; {interrupted}") from None
