"""Checks of names and paths passed as options, without heavy imports."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import typer

from commands.completion import complete_from
from data_cache.options import check_choice
from data_cache.system.devices import check_device
from pipeline.teacher.names import check_clip
from pipeline.teacher.prompts import Prompts
from trainer.checkpoint_folders import check_target, latest, run_in
from trainer.loggers import check_logger
from trainer.students.names import check_encoder, check_encoder_weights


def choice(flag: str, choices: Collection[str], help: str) -> Any:
    """An option that takes one of some names and belongs to no dataclass. Another name raises UsageError."""

    def check(value: str | None) -> str | None:
        if value is not None:
            check_choice(flag, value, choices)
        return value

    shown = f"{help} One of: {', '.join(choices)}."
    return typer.Option(help=shown, callback=check, autocompletion=complete_from(choices))


CHECKS: Mapping[str, Callable[[Any], object]] = {
    "checkpoint": latest,
    "clip": check_clip,
    "device": check_device,
    "encoder": check_encoder,
    "encoder_weights": check_encoder_weights,
    "log": check_logger,
    "prompts": Prompts,
    "run": run_in,
    "start": lambda path: path.is_file() or latest(path),
    "target": check_target,
}
"""Additional checks of values by option name."""
