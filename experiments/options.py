"""The options that several commands share, as types for their signatures."""

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
    str | None, typer.Option(help="Store dense tokens: float16 (the default) or none.", rich_help_panel=CACHE)
]
Device = Annotated[str | None, typer.Option(help="auto (the default), cpu, cuda or cuda:N.", rich_help_panel=RUN)]


def setting(name: str, panel: str) -> Any:
    """The option of a training setting: its help and default are those of the config."""
    default = default_of(name)
    return typer.Option(
        help=help_of(name) + (f" [dim](default: {default})[/]" if default is not None else ""),
        show_default=False,
        rich_help_panel=panel,
    )
