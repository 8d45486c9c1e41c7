"""How class names are put to CLIP's text tower: templates, and names as published or as a person writes them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data_cache.errors import UsageError
from data_cache.splits import vocabularies

CLEAN = "-clean"


@cache
def _templates() -> dict[str, list[str]]:
    # the sets of ZegCLIP (one and fifteen) and of MaskCLIP
    return json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Prompts:
    """A set of templates by name; with `-clean` behind it class names are cleaned too ("wall-brick": "brick wall").

    Raises UsageError if there is no such set.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name.removesuffix(CLEAN) not in _templates():
            known = ", ".join(_templates())
            raise UsageError(f"--prompts {self.name}: choose {known}, each also with {CLEAN} for cleaned class names")

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
        known = vocabularies()[dataset].clean if self.name.endswith(CLEAN) and dataset in vocabularies() else {}
        return tuple(known.get(name, name) for name in classes)
