"""The options that several commands share, as types for their signatures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.config import default_of, help_of

KNOWN = "voc, context, coco, camvid, folder or scenes."
DATA, TEACHER, CACHE, RUN, LOSSES = "Data", "Teacher", "Cache", "Run", "Losses"
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=RUN)]
Limit = Annotated[int | None, typer.Option(help="Only the first N images.", rich_help_panel=DATA)]
Root = Annotated[
    Path | None,
    typer.Option(
        help="Root of the dataset; else $CLIPTEACHER_DATA/<dataset>, else data/<dataset>. None for scenes.",
        rich_help_panel=DATA,
    ),
]


Preset = Annotated[
    str | None,
    typer.Option(
        help="The paper's settings: voc, context, coco or context-ablation; options override them.",
        rich_help_panel=RUN,
    ),
]
Student = Annotated[
    str | None,
    typer.Option(help="segformer-b4, swin-b, segnext-b or segformer-b0.", rich_help_panel="Student"),
]
CLIP = Annotated[
    str | None,
    typer.Option(
        help="open_clip ViT (ViT-B-16-quickgelu by default), the path of an open_clip JSON config, or tiny (for "
        "scenes).",
        rich_help_panel=TEACHER,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="A pretrained tag, the path of a checkpoint, or 'random'; openai by default, tiny's own for tiny.",
        rich_help_panel=TEACHER,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        help="CLIP's input side in pixels; 512, or a config file's own size, by default (256 for tiny).",
        rich_help_panel=TEACHER,
    ),
]
Dense = Annotated[
    str | None,
    typer.Option(help="Store dense tokens: float16 (none in presets), int8 or none.", rich_help_panel=CACHE),
]
Prompts = Annotated[
    str | None,
    typer.Option(
        help="single, zegclip15 or maskclip85, with -clean for cleaned class names; single for voc, else "
        "zegclip15, by default.",
        rich_help_panel=TEACHER,
    ),
]
Unseen = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help='Classes without labels in training, as "cow,road"; the published split by default.',
        rich_help_panel=DATA,
    ),
]
Views = Annotated[int | None, typer.Option(help="Views an image: the whole and V - 1 crops.", rich_help_panel=DATA)]
ViewSeed = Annotated[int | None, typer.Option(help="Seed of the crops.", rich_help_panel=DATA)]
Failures = Annotated[
    float, typer.Option(help="Share of failed images that still counts as success.", rich_help_panel=RUN)
]
Workers = Annotated[
    int,
    typer.Option(
        min=0,
        help="Processes that share the cores; this one alone by default, one a GPU where there are several.",
        rich_help_panel=RUN,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="A Dask cluster that exists does the work; tcp://host:8786. See docs/clusters.md.",
        rich_help_panel=RUN,
    ),
]
Device = Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or cuda:N.", rich_help_panel=RUN)]


def setting(name: str, panel: str, preset: bool = False) -> Any:
    """The option of a training setting: its help is the config's, and its default, unless a `preset` gives it."""
    default = default_of(name)
    told = "the preset's" if preset else default
    return typer.Option(
        help=help_of(name) + (f" [dim](default: {told})[/]" if default is not None or preset else ""),
        show_default=False,
        rich_help_panel=panel,
    )


def given_of(options: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """Those of a command's options that were given, but for some."""
    return {name: value for name, value in options.items() if value is not None and name not in without}
