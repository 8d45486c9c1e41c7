"""Draws the README's pictures from a finished demo: `python docs/pictures.py runs/demo` writes docs/*.png.

The sheet, and one of each figure of the paper: masks (Figure 6), attention (5), predictions (7). Each picture is kept
below 400 kB: colours are reduced to 256, then rows are left out.
"""

import argparse
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import open_dataset
from data_cache.errors import UserError
from experiments.cached_views import CachedViews
from experiments.centres import masks_figure
from experiments.figures import Figure, attention_figure, predictions_figure
from experiments.history import run_in
from experiments.sheet import demo_figure
from trainer.checkpoint import load
from trainer.evaluate import GAMMA, Predictor

DOCS = Path(__file__).parent
MOST_BYTES = 400_000
COLOURS = 256
ROWS = 4


def main() -> None:
    """Draw all four; exit with one line if the demo is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what `demo --out` wrote")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    arguments = parser.parse_args()
    try:
        figures = figures_of(arguments.demo)
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, draw in figures.items():
            file = arguments.out / f"{name}.png"
            file.write_bytes(small(draw()))
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    except UserError as error:
        sys.exit(f"error: {error}")


def figures_of(demo: Path) -> dict[str, Callable[[], Figure]]:
    """What is to be drawn, by the file's name. Raises UserError if the demo is not finished."""
    student = load(run_in(demo), torch.device("cpu"))
    views, images = CachedViews.open(demo / "train.zarr", None), open_dataset("scenes", None, "val")
    predictor = Predictor(student)
    # the richest of the first scenes: those with most masks
    most = sorted(range(min(100, len(views.images))), key=lambda i: -views.fused(i)[1])[:ROWS]
    return {
        "demo": lambda: demo_figure(predictor, demo / "val.zarr"),
        "masks": lambda: masks_figure(views, sorted(most)),
        "attention": lambda: attention_figure(student, views, sorted(most)),
        "predictions": lambda: predictions_figure(predictor, images, range(ROWS), GAMMA),
    }


def small(figure: Figure) -> bytes:
    """A PNG of at most `MOST_BYTES`, with as many of the rows as fit. Raises UserError if not even one does."""
    for rows in range(len(figure.rows), 0, -1):
        stream = io.BytesIO()
        drawn = replace(figure, rows=figure.rows[:rows]).draw()
        drawn.quantize(COLOURS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= MOST_BYTES:
            return stream.getvalue()
    raise UserError(f"one row of the figure is more than {MOST_BYTES} bytes; draw it with a smaller --side")


if __name__ == "__main__":
    main()
