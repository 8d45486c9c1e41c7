"""Options: dataclass fields that carry the help, choices and limits of command-line options, and their validation."""

import math
import sys
from collections.abc import Collection
from dataclasses import MISSING, Field, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from data_cache.errors import UsageError
from data_cache.messages import did_you_mean

MAX_PRINTED = 10**20
"""The largest number that a message prints: Python refuses to print thousands of digits."""


def option(
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection[str] = (),
    metavar: str | None = None,
    flags: str | None = None,
) -> Any:
    """A dataclass field that is an option of a command.

    Args:
        default: the default value; `dataclasses.MISSING` for a required option.
        help: one or two sentences.
        minimum: the smallest number, or element of a tuple of numbers.
        maximum: the largest.
        choices: the accepted names. A `Literal` type needs none.
        metavar: the placeholder of the value in the help, if not its type.
        flags: the spelling on the command line, if not `--name`.

    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": tuple(choices)}
    return field(default=default, metadata=metadata | {"metavar": metavar, "flags": flags})


def argument(help: str, choices: Collection[str] = ()) -> Any:
    """A dataclass field that is a positional argument of a command."""
    return field(metadata={"help": help, "minimum": None, "maximum": None, "choices": choices, "argument": True})


def same_option(config: type, name: str, default: Any = None, help: str | None = None) -> Any:
    """The option of this name in another dataclass, with its own default and optionally its own help."""
    metadata = field_of(config, name).metadata
    return field(default=default, metadata={**metadata, "help": help or metadata["help"]})


def field_of(config: type, name: str) -> Field:
    """The field of one option."""
    return next(entry for entry in fields(config) if entry.name == name)


def choices_of(config: type, name: str) -> tuple[str, ...]:
    """The names that an option accepts; empty if it accepts any value."""
    hint = get_type_hints(config)[name]
    return get_args(hint) if get_origin(hint) is Literal else field_of(config, name).metadata["choices"]


def help_of(config: type, name: str) -> str:
    """The help of one option, with its choices."""
    choices = choices_of(config, name)
    return field_of(config, name).metadata["help"] + (f" One of: {', '.join(choices)}." if choices else "")


def default_of(config: type, name: str) -> Any:
    """The default of one option; None for a required one."""
    default = field_of(config, name).default
    return None if default is MISSING else default


def described(config: Any) -> dict[str, dict[str, Any]]:
    """Value, default, choices (if any) and help of each option of an object of settings, by name."""
    return {
        entry.name: {
            "value": getattr(config, entry.name),
            "default": default_of(type(config), entry.name),
            **({"choices": list(choices)} if (choices := choices_of(type(config), entry.name)) else {}),
            "help": entry.metadata["help"],
        }
        for entry in fields(config)
        if entry.metadata
    }


def flag_of(entry: Field) -> str:
    """The name of an option in messages: `--name`, or `name` for a positional argument."""
    return ("" if entry.metadata.get("argument") else "--") + entry.name.replace("_", "-")


def number(text: str, kind: type = float) -> float:
    """The number that a user has typed, a whole one if `kind` is int.

    Raises ValueError for anything else, including what Python alone takes for a number, such as "1_0".
    """
    if "_" in text or not text.isascii():
        raise ValueError(f"not a number: {text}")
    return kind(text)


def parts_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union type; otherwise the type itself."""
    return get_args(hint) if isinstance(hint, UnionType) else (hint,)


def check_choice(flag: str, value: object, choices: Collection[str]) -> None:
    """Raise UsageError for a value that is not among the choices."""
    if value not in choices:
        raise UsageError(f"{flag} {value}: choose {', '.join(choices)}{did_you_mean(str(value), choices)}")


def check_options(config: Any) -> None:
    """Raise UsageError for a value of the wrong type, not among the choices, or out of range.

    Paths may be given as strings, and strings as paths: they are converted.
    """
    hints = get_type_hints(type(config))
    for entry in fields(config):
        value, parts = getattr(config, entry.name), parts_of(hints[entry.name])
        if isinstance(value, str) and Path in parts and str not in parts:
            object.__setattr__(config, entry.name, Path(value).expanduser())
        elif isinstance(value, Path) and str in parts and Path not in parts:
            object.__setattr__(config, entry.name, str(value))
        if entry.metadata:
            check_option(type(config), entry.name, getattr(config, entry.name))


def check_option(config: type, name: str, value: Any) -> None:
    """Raise UsageError for a value that this option does not accept."""
    entry = field_of(config, name)
    flag = flag_of(entry)
    _check_type(flag, value, get_type_hints(config)[name])
    choices = choices_of(config, name)
    if choices and value is not None:
        check_choice(flag, value, choices)
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float):
            _check_range(flag, number, entry.metadata["minimum"], entry.metadata["maximum"])


def _check_range(flag: str, value: float, minimum: float | None, maximum: float | None) -> None:
    shown = "of many digits" if isinstance(value, int) and abs(value) > MAX_PRINTED else value
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{flag} {shown}: must be a finite number")
    if minimum is not None and value < minimum:
        raise UsageError(f"{flag} {shown}: must be at least {minimum}")
    if maximum is not None and value > maximum:
        raise UsageError(f"{flag} {shown}: must be at most {maximum}")
    if abs(value) > sys.float_info.max:
        raise UsageError(f"{flag} {shown}: must be a finite number")


def _check_type(flag: str, value: Any, hint: Any) -> None:
    if value is None and not isinstance(hint, UnionType):
        raise UsageError(f"{flag}: a value is missing")
    types = tuple(str if get_origin(part) is Literal else get_origin(part) or part for part in parts_of(hint))
    accepted = (*types, int) if float in types else types
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types):
        name = next(part for part in types if part is not NoneType).__name__
        raise UsageError(f"{flag} {value!r}: must be {name}")
    if isinstance(value, tuple):
        kind = next(get_args(part)[0] for part in parts_of(hint) if get_origin(part) is tuple)
        for element in value:
            _check_type(flag, element, kind)
