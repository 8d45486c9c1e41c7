"""Prompts for CLIP's text tower: sets of templates, and class names as published or cleaned."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from data_cache.class_list import known_lists, open_vocabularies
from data_cache.errors import UsageError
from data_cache.messages import did_you_mean

CLEAN = "-clean"


@cache
def _templates() -> dict[str, list[str]]:
    # from ZegCLIP (single, zegclip15) and MaskCLIP (maskclip85)
    return json.loads(Path(__file__).with_name("prompts.json").read_text(encoding="utf-8"))


def prompt_sets() -> tuple[str, ...]:
    """Names of the prompt sets."""
    return tuple(_templates())


@dataclass(frozen=True)
class Prompts:
    """A prompt set by name; the suffix `-clean` also cleans class names ("wall-brick" becomes "brick wall").

    Raises UsageError for an unknown set.
    """

    name: str

    def __post_init__(self) -> None:
        if (plain := self.name.removesuffix(CLEAN)) not in prompt_sets():
            known = f"choose {', '.join(prompt_sets())}, each also with {CLEAN} for cleaned class names"
            raise UsageError(f"--prompts {self.name}: {known}{did_you_mean(plain, prompt_sets())}")

    @classmethod
    def default_for(cls, dataset: str) -> "Prompts":
        """The default of a dataset: `single` for VOC, `zegclip15` for all others (ZegCLIP's protocol).

        Datasets without a zero-shot split have `zegclip15` with cleaned names.
        """
        if dataset in open_vocabularies():
            return cls(f"zegclip15{CLEAN}")
        return cls("single" if dataset == "voc" else "zegclip15")

    @property
    def templates(self) -> tuple[str, ...]:
        """Sentences with {} in place of the class name."""
        return tuple(_templates()[self.name.removesuffix(CLEAN)])

    def class_names(self, dataset: str, classes: Sequence[str]) -> tuple[str, ...]:
        """The classes as named in the prompts; names without a cleaned form are left unchanged."""
        cleaned = known_lists()[dataset].clean if self.name.endswith(CLEAN) and dataset in known_lists() else {}
        return tuple(cleaned.get(name, name) for name in classes)
