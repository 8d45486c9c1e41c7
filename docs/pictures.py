"""Draws the README's pictures from a finished demo: `python docs/pictures.py runs/demo` writes docs/*.png.

The sheet, and one of each figure of the paper: masks (Figure 6), attention (5), predictions (7). Each picture is kept
below 400 kB: colors are reduced to 256, then rows are left out.
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
from data_cache.system.atomic import atomic_write
from experiments.figures import attention_figure, demo_figure, predictions_figure
from experiments.scales import masks_figure
from trainer.checkpoint import load
from trainer.config import GAMMA
from trainer.predictor import Predictor
from viewer.figure import Figure
from viewer.reader import open_finished_cache

DOCS = Path(__file__).parent
MOST_BYTES = 400_000
COLORS = 256
ROWS = 4


def main() -> None:
    """Draw all four; exit with one line if the demo is not there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="what `demo --out` wrote")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    arguments = parser.parse_args()
    try:
        figures = figures_of(arguments.demo)
        for name, draw in figures.items():
            file = arguments.out / f"{name}.png"
            with atomic_write(file) as draft:
                draft.write_bytes(small(draw()))
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    except UserError as error:
        sys.exit(f"error: {error}")


def figures_of(demo: Path) -> dict[str, Callable[[], Figure]]:
    """Functions that draw the figures, by file name. Raises UserError if the demo is not finished."""
    student = load(demo, torch.device("cpu"))
    cache, images = open_finished_cache(demo / "train.zarr", None), open_dataset("scenes", None, "val")
    predictor = Predictor(student)
    # the richest of the first scenes: those with most masks
    most = sorted(range(min(100, len(cache))), key=lambda i: -cache.counts[i, 0])[:ROWS]
    views = [cache[index] for index in sorted(most)]
    return {
        "demo": lambda: demo_figure(predictor, demo / "val.zarr"),
        "masks": lambda: masks_figure(views),
        "attention": lambda: attention_figure(student, views),
        "predictions": lambda: predictions_figure(predictor, images, range(ROWS), GAMMA),
    }


def small(figure: Figure) -> bytes:
    """A PNG of at most `MOST_BYTES`, with as many of the rows as fit. Raises UserError if not even one does."""
    for rows in range(len(figure.rows), 0, -1):
        stream = io.BytesIO()
        drawn = replace(figure, rows=figure.rows[:rows]).to_image()
        drawn.quantize(COLORS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= MOST_BYTES:
            return stream.getvalue()
    raise UserError(f"one row of the figure is more than {MOST_BYTES} bytes; draw it with a smaller --side")


if __name__ == "__main__":
    main()
