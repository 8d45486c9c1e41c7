"""Checks of names passed as options, without heavy imports."""

from collections.abc import Callable, Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from data_cache.errors import UsageError
from data_cache.messages import did_you_mean
from data_cache.options import check_choice
from pipeline.teacher.prompts import Prompts

TINY = "tiny"


def choice(flag: str, choices: Collection[str], help: str) -> Any:
    """An option that takes one of some names and belongs to no dataclass. Another name raises UsageError."""

    def check(value: str | None) -> str | None:
        if value is not None:
            check_choice(flag, value, choices)
        return value

    return typer.Option(help=f"{help} One of: {', '.join(choices)}.", callback=check)


def check_clip(value: str) -> None:
    """Raise UsageError for an architecture that open_clip does not have."""
    # files, hubs and folders (`hf-hub:`, `local-dir:`) are checked when they are opened
    if value.endswith(".json") or ":" in value or value == TINY:
        return
    names = clip_names()
    if names and value not in names:
        nearest = did_you_mean(value, [*names, TINY]) or "; pass an open_clip name or a JSON config"
        raise UsageError(f"--clip: open_clip has no model named {value!r}{nearest}")


def clip_names() -> set[str]:
    """The architectures of open_clip, from its config files, because importing the package takes seconds."""
    package = find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    return {file.stem for folder in folders or () for file in Path(folder).glob("model_configs/*.json")}


CHECKS: Mapping[str, Callable[[str], Any]] = {"clip": check_clip, "prompts": Prompts}
"""Additional checks of values by option name."""
