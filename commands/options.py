"""Generates the options of a command from the dataclass of its settings: names, types, help, defaults, choices."""

import re
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from commands.choices import CHECKS, choice
from commands.completion import completion
from commands.help_page import PLACEHOLDERS, RUN
from data_cache.errors import UsageError
from data_cache.options import check_option, default_of, field_of, flag_of, help_of, number, parts_of
from experiments.presets import PRESETS, STUDENTS

Given = dict[str, Any]
"""The options that the user has set, by field name."""

PANELS = {
    "Data": "annotations colors dataset root split limit unseen transductive views view_seed view_scale view_ratio "
    "classes image images result test_on test_root tested",
    "Teacher": "prompts clip clip_weights image_size precision kmeans masks_from windows threshold updates",
    "Student": "student arch encoder encoder_weights size",
    "Losses": "glm vla logits ce nel generate loss_stride",
    "Cache": "cache name masks masks_name view dense masks_dense shard extend overwrite retry_failed repair",
}
"""The panels of a help page in order, and the options in each; the last panel, Run, has all others."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
_PRESET = "The paper's settings of a benchmark; options override them. Which gamma is best depends on the student."
Preset = Annotated[str | None, choice("--preset", PRESETS, _PRESET)]
Student = Annotated[str | None, choice("--student", STUDENTS, "Architecture and encoder of the paper.")]
PATHS = ("cache", "root")
"""Options that are paths although `TrainConfig`, which is written as JSON, stores them as text."""


@dataclass(frozen=True)
class Some:
    """Some options of a dataclass.

    Args:
        config: the dataclass.
        names: of its fields.
        defaults: an instance that has other defaults, or other defaults by name, as the help shows them.

    """

    config: type
    names: tuple[str, ...]
    defaults: Any = field(default_factory=dict)


def options(*sources: type | Some) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of dataclasses. Its first argument, `Given`, receives those that the user has set.

    Invalid values raise UsageError here, before the command imports anything heavy.
    """
    subsets = [s if isinstance(s, Some) else Some(s, tuple(f.name for f in fields(s) if f.metadata)) for s in sources]
    owners = {name: subset.config for subset in subsets for name in subset.names}
    # arguments last: a path is looked up only if all options are valid
    owners = dict(sorted(owners.items(), key=lambda entry: "argument" in field_of(entry[1], entry[0]).metadata))

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            options = {name: values.pop(name) for name in owners}
            given = {name: parsed(owners[name], name, v) for name, v in options.items() if v not in (None, [])}
            command(given, **values)

        own = list(signature(command).parameters.values())[1:]
        generated = [_parameter(subset, name) for subset in subsets for name in subset.names]
        # the function's own parameters come first, except --json, which is last in every command
        parameters = sorted(
            [*own, *generated], key=lambda parameter: (parameter.name == "as_json", _panel(parameter)[0])
        )
        run.__signature__ = Signature([_in_panel(parameter) for parameter in parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {"return": None}
        return run

    return decorate


def _parameter(source: Some, name: str) -> Parameter:
    """The function parameter from which typer generates an option."""
    config, entry = source.config, field_of(source.config, name)
    hint = get_type_hints(config)[name]
    kind = next(part for part in parts_of(hint) if part is not NoneType)
    about, required = entry.metadata, entry.default is MISSING
    if about.get("argument"):
        info = typer.Argument(help=help_of(config, name), show_default=False, autocompletion=completion(config, name))
        annotation = list[get_args(kind)[0]] if get_origin(kind) is tuple else kind
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[annotation, info])
    metavar, annotation = about["metavar"], kind
    if get_origin(kind) is tuple:
        annotation = list[str] if str in get_args(kind) else str
    elif get_origin(kind) is Literal:
        annotation = str
    elif kind in (int, float):
        annotation, metavar = (
            str,
            metavar or PLACEHOLDERS[f"<{kind.__name__}>"],
        )  # parsed here: typer would accept "1_0"
    elif kind is str and name in PATHS:
        annotation = Path
    info = typer.Option(
        *_flags(entry),
        help=_help(source, entry, kind),
        metavar=metavar,
        show_default=False,
        autocompletion=completion(config, name),
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
    elif entry.name in source.defaults:
        # the text names the default that does not apply here
        text, default = re.sub(r"; [^;]*by default[^;]*$", ".", text), source.defaults[entry.name]
    if default is None or default == () or "default" in text:
        return text
    shown = ",".join(f"{one:g}" for one in default) if isinstance(default, tuple) else default
    return f"{text} [dim](default: {shown})[/]"


def _panel(parameter: Parameter) -> tuple[int, str | None]:
    """Index and title of a parameter's panel; positional arguments have no panel."""
    if isinstance(parameter.annotation.__metadata__[0], typer.models.ArgumentInfo):
        return -1, None
    for index, (title, names) in enumerate(PANELS.items()):
        if parameter.name in names.split():
            return index, title
    return len(PANELS), RUN


def _in_panel(parameter: Parameter) -> Parameter:
    parameter.annotation.__metadata__[0].rich_help_panel = _panel(parameter)[1]
    return parameter.replace(kind=Parameter.KEYWORD_ONLY)


def parsed(config: type, name: str, value: Any) -> Any:
    """Convert the value of an option to the type of its field. Raises UsageError for an invalid value."""
    hint, flag = get_type_hints(config)[name], flag_of(field_of(config, name))
    tuples = [get_args(part) for part in parts_of(hint) if get_origin(part) is tuple]
    if tuples:
        value = tuple(value) if isinstance(value, list) else _numbers(flag, value, tuples[0])
    elif isinstance(value, str) and (kinds := [part for part in parts_of(hint) if part in (int, float)]):
        value = _number(flag, value, kinds[0])
    if name in PATHS and str in parts_of(hint):
        value = str(value)
    if name in CHECKS:
        CHECKS[name](value)
    check_option(config, name, value)
    return value


def _number(flag: str, text: str, kind: type) -> float:
    try:
        return number(text, kind)
    except ValueError:
        raise UsageError(f"{flag} {text[:40]}: must be a {'whole ' if kind is int else ''}number") from None


def _numbers(flag: str, text: str, kinds: tuple[Any, ...]) -> tuple[float, ...]:
    any_length = Ellipsis in kinds
    amount = "numbers" if any_length else f"{len(kinds)} numbers"
    try:
        numbers = tuple(number(part, kinds[0]) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not (any_length or len(numbers) == len(kinds)):
        whole = "whole " if kinds[0] is int else ""
        raise UsageError(f"{flag} {text}: must be {whole}{amount} separated by commas")
    return numbers
