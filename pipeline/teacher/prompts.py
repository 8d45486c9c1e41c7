"""How class names are put to CLIP's text tower: templates, and names as published or as a person writes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data_cache.class_list import class_lists
from data_cache.errors import UsageError
from data_cache.messages import did_you_mean

CLEAN = "-clean"


@cache
def _templates() -> dict[str, list[str]]:
    # the sets of ZegCLIP (one and fifteen) and of MaskCLIP
    return json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))


def sets() -> tuple[str, ...]:
    """The names of the sets of templates."""
    return tuple(_templates())


@dataclass(frozen=True)
class Prompts:
    """A set of templates by name; with `-clean` behind it class names are cleaned too ("wall-brick": "brick wall").

    Raises UsageError if there is no such set.
    """

    name: str

    def __post_init__(self) -> None:
        if (plain := self.name.removesuffix(CLEAN)) not in sets():
            known = f"choose {', '.join(sets())}, each also with {CLEAN} for cleaned class names"
            raise UsageError(f"--prompts {self.name}: {known}{did_you_mean(plain, sets())}")

    @classmethod
    def of(cls, dataset: str) -> "Prompts":
        """A dataset's default: `single` for VOC, `zegclip15` for all others (ZegCLIP's protocol)."""
        return cls("single" if dataset == "voc" else "zegclip15")

    @property
    def templates(self) -> tuple[str, ...]:
        """Sentences with {} for the name."""
        return tuple(_templates()[self.name.removesuffix(CLEAN)])

    def words(self, dataset: str, classes: Sequence[str]) -> tuple[str, ...]:
        """What stands in the sentences for each class; names that have no cleaned form stay as they are."""
        known = class_lists()[dataset].clean if self.name.endswith(CLEAN) and dataset in class_lists() else {}
        return tuple(known.get(name, name) for name in classes)
