"""Completes option values in a shell: names come from the registries, and nothing heavy is imported."""

from collections.abc import Callable, Iterable, Mapping

import typer

from data_cache.datasets import DATASETS
from data_cache.options import choices_of
from experiments.ablate_config import VARIANTS
from experiments.reproduce_config import test_datasets
from pipeline.config import PrecomputeConfig
from pipeline.teacher.names import TINY, TINY_TAGS, clip_configs, pretrained_tags
from pipeline.teacher.prompts import CLEAN, prompt_sets
from pipeline.teacher.weights import RANDOM
from trainer.students.names import MSCAN, TIMM, smp_encoders, smp_tags, timm_models

Completion = Callable[[typer.Context, str], list[str]]
"""Names that complete a typed prefix; typer drops those that do not start with it."""


def complete_from(names: Iterable[str]) -> Completion:
    """Complete any of some names."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        return list(names)

    return complete


def completion(config: type, name: str) -> Completion | None:
    """The completion of an option of a dataclass; None if it takes any value. Shells then complete file names."""
    if choices := choices_of(config, name):
        return complete_from(choices)
    return COMPLETIONS.get(name)


def _clips(ctx: typer.Context, incomplete: str) -> list[str]:
    return [*sorted(clip_configs()), TINY]


def _clip_weights(ctx: typer.Context, incomplete: str) -> list[str]:
    clip = ctx.params.get("clip") or PrecomputeConfig.clip
    return [*(TINY_TAGS if clip == TINY else pretrained_tags().get(clip, ())), RANDOM]


def _encoders(ctx: typer.Context, incomplete: str) -> list[str]:
    # timm has more than a thousand models
    timm = [f"{TIMM}{model}" for model in timm_models()] if incomplete.startswith(TIMM) else [TIMM]
    return [*smp_encoders(), *MSCAN, *timm]


def _encoder_weights(ctx: typer.Context, incomplete: str) -> list[str]:
    return [*smp_tags(), "none"]


def _prompts(ctx: typer.Context, incomplete: str) -> list[str]:
    return [name + suffix for name in prompt_sets() for suffix in ("", CLEAN)]


def _splits(ctx: typer.Context, incomplete: str) -> list[str]:
    spec = DATASETS.get(ctx.params.get("dataset") or "")
    return list(spec.splits if spec and spec.splits else ("train", "val"))


def _rows(ctx: typer.Context, incomplete: str) -> list[str]:
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{row}" for row in VARIANTS if row not in before.split(",")]


def _tests(ctx: typer.Context, incomplete: str) -> list[str]:
    before, comma, _ = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in test_datasets() if name not in before.split(",")]


COMPLETIONS: Mapping[str, Completion] = {
    "clip": _clips,
    "clip_weights": _clip_weights,
    "device": complete_from(("auto", "cpu", "cuda")),
    "encoder": _encoders,
    "encoder_weights": _encoder_weights,
    "prompts": _prompts,
    "split": _splits,
    "rows": _rows,
    "test_on": _tests,
}
"""The completions of options without fixed choices, by name."""
