"""The commands that use a trained student outside of experiments: parse, call one function, print."""

from pathlib import Path
from typing import Annotated

import typer

from experiments.console import bar, say, show
from experiments.options import CLIP, DATA, RUN, TEACHER, Device, Json, Weights, given_of

Trained = Annotated[Path, typer.Argument(help="A run's folder, or a file in it.")]
Classes = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help='What to choose from, as "frisbee,tree,grass", or a file with one name a line; the classes of the '
        "training by default.",
        rich_help_panel=DATA,
    ),
]
OwnPrompts = Annotated[
    str | None,
    typer.Option(
        help="single, zegclip15 or maskclip85, with -clean for cleaned class names; those of the training by default.",
        rich_help_panel=TEACHER,
    ),
]


def predict(
    checkpoint: Trained,
    photographs: Annotated[Path, typer.Argument(help="A photograph, or a folder of them and of more folders.")],
    classes: Classes = None,
    out: Annotated[
        Path | None, typer.Option(help="Where the results go; runs/predict by default.", rich_help_panel=RUN)
    ] = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Added to the logits of classes without labels in training; 1.5 by default.",
            rich_help_panel=RUN,
        ),
    ] = None,
    sliding: Annotated[
        bool | None,
        typer.Option(
            "--sliding/--whole", help="Sliding window, or the whole image (the default).", rich_help_panel=RUN
        ),
    ] = None,
    prompts: OwnPrompts = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Segment your own photographs, with any class names: overlays, index maps and areas."""
    given = given_of(locals(), "as_json")
    from experiments import predict as photography
    from experiments.evaluation import gamma_of

    if gamma is not None:
        given["gamma"] = gamma_of(gamma)
    album = photography.predict(photography.Asked(**given), bar("what is finished is kept"))
    show(album.as_json() if as_json else str(album))
    for name, reason in album.failures.items():
        say(f"{name}: {reason}", "failed ", "red")
    album.check()


def export(
    checkpoint: Trained,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.", rich_help_panel=RUN)],
    classes: Classes = None,
    gamma: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="Add this to the logits of classes without labels in training; by default the graph adds nothing.",
            rich_help_panel=RUN,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="N | HEIGHT,WIDTH | any",
            help="For images of this size alone; by default any, but the training's where any takes very long (swin).",
            rich_help_panel=RUN,
        ),
    ] = None,
    prompts: OwnPrompts = None,
    clip: CLIP = None,
    clip_weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Write a student and its text features as one ONNX graph, held against the student before it is kept."""
    given = given_of(locals(), "as_json")
    from experiments import export as graphs
    from experiments.evaluation import gamma_of

    if gamma is not None:
        given["gamma"] = gamma_of(gamma)
    exported = graphs.export(graphs.Asked(**given), say)
    show(exported.as_json() if as_json else str(exported))
