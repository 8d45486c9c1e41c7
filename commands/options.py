"""The options of a command follow from the dataclass of its settings: names, types, help, defaults and choices."""

from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from commands.choices import CHECKS, choice
from data_cache.errors import UsageError
from data_cache.options import check_option, default_of, field_of, flag_of, help_of, parts_of
from experiments.presets import PRESETS, STUDENTS

Given = dict[str, Any]
"""The options that the user has set, by the names of the dataclass's fields."""

PANELS = {
    "Data": "dataset root split limit unseen views view_seed view_scale view_ratio classes image images result test_on "
    "test_root tested",
    "Teacher": "prompts clip clip_weights image_size precision kmeans compile windows threshold updates",
    "Student": "student arch encoder encoder_weights size",
    "Losses": "glm vla ce nel generate loss_stride",
    "Cache": "cache name masks view dense shard extend overwrite retry_failed repair",
}
"""The panels of a help page and the options in each, in order; the last one, Run, has all others."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Preset = Annotated[
    str | None, choice("--preset", PRESETS, "The paper's settings of a benchmark; options override them.")
]
Student = Annotated[str | None, choice("--student", STUDENTS, "Architecture and encoder of the paper.")]
Failures = Annotated[float, typer.Option(help="Share of failed images that still counts as success.")]
PATHS = ("cache", "root")
"""Text in `TrainConfig`, which is written as JSON; a path on the command line all the same."""


@dataclass(frozen=True)
class Some:
    """Some options of a dataclass.

    Args:
        config: the dataclass.
        names: of its fields.
        defaults: what the help says of the default, or an instance whose values are the defaults.

    """

    config: type
    names: tuple[str, ...]
    defaults: Any = None


def options(*sources: type | Some) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of dataclasses; it gets those that were set as its first argument, `Given`.

    A value that an option does not take is refused here, before the command imports anything heavy.
    """
    some = [s if isinstance(s, Some) else Some(s, tuple(f.name for f in fields(s) if f.metadata)) for s in sources]
    owners = {name: source.config for source in some for name in source.names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            set_by_user = {name: values.pop(name) for name in owners}
            given = {name: parsed(owners[name], name, v) for name, v in set_by_user.items() if v not in (None, [])}
            command(given, **values)

        own = list(signature(command).parameters.values())[1:]
        made = [_parameter(source, name) for source in some for name in source.names]
        # a function's own parameters first, but --json, which every command has, last of all
        parameters = sorted([*own, *made], key=lambda parameter: (parameter.name == "as_json", _panel(parameter)[0]))
        run.__signature__ = Signature([_in_panel(parameter) for parameter in parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {"return": None}
        return run

    return decorate


def _parameter(source: Some, name: str) -> Parameter:
    """A parameter of a command's function, as typer reads it."""
    config, entry = source.config, field_of(source.config, name)
    hint = get_type_hints(config)[name]
    kind = next(part for part in parts_of(hint) if part is not NoneType)
    about, required = entry.metadata, entry.default is MISSING
    if about.get("argument"):
        info = typer.Argument(help=help_of(config, name), show_default=False)
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[kind, info])
    metavar, annotation = about["metavar"], kind
    if get_origin(kind) is tuple:
        annotation = list[str] if str in get_args(kind) else str
    elif get_origin(kind) is Literal:
        annotation = str
    elif kind is float and metavar:
        annotation = str  # parsed here: typer would print a box in place of one line
    elif kind is str and name in PATHS:
        annotation = Path
    info = typer.Option(
        *_flags(entry),
        help=_help(source, entry, kind),
        metavar=metavar,
        show_default=False,
    )
    if required:
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, info])
    return Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation | None, info])


def _flags(entry: Field) -> tuple[str, ...]:
    flag = flag_of(entry)
    if entry.metadata["flags"]:
        return (entry.metadata["flags"],)
    # a switch that is on can only be turned off
    return (f" /--no-{flag[2:]}",) if entry.default is True else (flag,)


def _help(source: Some, entry: Field, kind: type) -> str:
    text, default = help_of(source.config, entry.name), default_of(source.config, entry.name)
    if kind is bool:
        return f"Turn off the {text[0].lower()}{text[1:]}" if default is True else text
    if isinstance(source.defaults, source.config):
        default = getattr(source.defaults, entry.name)
    elif source.defaults:
        default = source.defaults
    if default is None or default == ():
        return text
    shown = ",".join(f"{one:g}" for one in default) if isinstance(default, tuple) else default
    return f"{text} [dim](default: {shown})[/]"


def _panel(parameter: Parameter) -> tuple[int, str | None]:
    """The place of a parameter's panel, and its title; arguments stand outside of all."""
    if isinstance(parameter.annotation.__metadata__[0], typer.models.ArgumentInfo):
        return -1, None
    found = [(place, title) for place, (title, names) in enumerate(PANELS.items()) if parameter.name in names.split()]
    return found[0] if found else (len(PANELS), "Run")


def _in_panel(parameter: Parameter) -> Parameter:
    parameter.annotation.__metadata__[0].rich_help_panel = _panel(parameter)[1]
    return parameter.replace(kind=Parameter.KEYWORD_ONLY)


def parsed(config: type, name: str, value: Any) -> Any:
    """The value of an option as its dataclass has it. Raises UsageError for one that it does not take."""
    hint, flag = get_type_hints(config)[name], flag_of(field_of(config, name))
    tuples = [get_args(part) for part in parts_of(hint) if get_origin(part) is tuple]
    if tuples:
        value = tuple(value) if isinstance(value, list) else _numbers(flag, value, tuples[0])
    elif float in parts_of(hint) and isinstance(value, str):
        value = _number(flag, value)
    if name in PATHS and str in parts_of(hint):
        value = str(value)
    if name in CHECKS:
        CHECKS[name](value)
    check_option(config, name, value)
    return value


def _number(flag: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{flag} {text}: must be a number") from None


def _numbers(flag: str, text: str, kinds: tuple[Any, ...]) -> tuple[float, ...]:
    any_length = Ellipsis in kinds
    amount = "numbers" if any_length else f"{len(kinds)} numbers"
    try:
        numbers = tuple(map(kinds[0], text.split(",")))
    except ValueError:
        numbers = ()
    if not numbers or not (any_length or len(numbers) == len(kinds)):
        whole = "whole " if kinds[0] is int else ""
        raise UsageError(f"{flag} {text}: must be {whole}{amount} separated by commas")
    return numbers
