"""The whole path on pictures this script draws itself: precompute, train, evaluate, and a sheet to look at.

CLIP's weights are random here, so the masks and the accuracy mean nothing: this shows that everything works on
your machine, and what comes out where. Needs no data, no network once installed, and two minutes on two cores.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from data_cache.datasets import open_dataset  # noqa: E402
from data_cache.datasets.base import VOID  # noqa: E402
from data_cache.devices import resolve_device  # noqa: E402
from data_cache.schema import reserved_label  # noqa: E402
from data_cache.show import colour, sheet  # noqa: E402
from data_cache.store import Cache  # noqa: E402
from trainer.checkpoint import load  # noqa: E402
from trainer.evaluate import Predictor  # noqa: E402

CLASSES = ("sky", "grass", "sand", "disc", "square", "stripe")
UNSEEN = "disc"
PICTURES, CACHE, RUN = Path("data/drawn"), Path("data_cache/drawn.zarr"), Path("runs/drawn")
SIDE = 128


def main() -> None:
    """Draw, run the three commands as a user would type them, and save the sheet."""
    draw_folder(PICTURES, {"train": 24, "val": 8})
    data = ["--dataset", "folder", "--root", str(PICTURES)]
    clip = ["--clip", str(HERE / "tiny-vit.json"), "--clip-weights", "random", "--image-size", str(2 * SIDE)]
    student = ["--encoder-weights", "none", "--size", str(SIDE), "--lr", "3e-4", "--batch-size", "8"]
    run("precompute", *data, *clip, "--unseen", UNSEEN, "--cache", str(CACHE))
    if not any(RUN.glob("step_*")):
        run("train", "--cache", str(CACHE), "--out", str(RUN), "--iterations", "80", *student)
    # a random text tower finds all names alike: any bonus would make everything unseen
    run("evaluate", str(RUN), *data, "--gamma", "0")
    picture = RUN / "sheet.png"
    draw_sheet().save(picture)
    print(f"look at {picture}; then go on with your own images, or COCO: see README.md")


def run(*arguments: str) -> None:
    """Type a command for the user, and stop if it fails."""
    print("\n$ python cli.py", *arguments, flush=True)
    status = subprocess.run([sys.executable, str(HERE.parent / "cli.py"), *arguments], check=False).returncode
    if status:
        sys.exit(status)


def draw_folder(root: Path, counts: dict[str, int]) -> None:
    """Write pictures and label maps in the layout of `--dataset folder`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    generator = np.random.default_rng(0)
    for split, count in counts.items():
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, label = draw(generator)
            Image.fromarray(image).save(root / "images" / split / f"{number:03}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{number:03}.png")


def draw(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture: sky above grass or sand, a disc, a square and a stripe at random places, and noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    label = np.where(y < generator.integers(40, 90), 0, generator.integers(1, 3)).astype(np.uint8)
    for name in generator.permutation(("disc", "square", "stripe")):
        (top, left), size = generator.integers(20, SIDE - 20, 2), generator.integers(12, 28)
        shapes = {
            "disc": (y - top) ** 2 + (x - left) ** 2 < size**2,
            "square": (abs(y - top) < size) & (abs(x - left) < size),
            "stripe": abs((y - top) - (x - left)) < size / 3,
        }
        label[shapes[name]] = CLASSES.index(name)
    base = np.array([(110, 170, 240), (70, 150, 60), (220, 200, 140), (220, 60, 50), (90, 60, 160), (240, 220, 40)])
    image = base[label] + generator.normal(0, 18, (SIDE, SIDE, 3)) + generator.normal(0, 12, 3)
    label[generator.random((SIDE, SIDE)) < 0.01] = VOID
    return image.clip(0, 255).astype(np.uint8), label


def draw_sheet() -> Image.Image:
    """Draw image, seen labels, cached masks and prediction of a few training pictures."""
    cache = Cache(CACHE)
    masks = cache.load(cache.mask_name(None)).label
    dataset = open_dataset("folder", PICTURES, "train")
    predictor = Predictor(load(RUN, resolve_device("auto")), gamma=0)
    hidden = predictor.checkpoint.split.unseen_index
    rows = []
    for index in range(4):
        image, label = dataset.load(index)
        seen = np.where(np.isin(label, hidden), VOID, label)
        fused = masks[index, 0].astype(int)
        # pseudo labels are no classes: they get colours of their own
        fused = np.where(fused == reserved_label(masks.dtype.name), VOID, fused + len(CLASSES))
        rows.append((image, colour(seen, VOID), colour(fused, VOID), colour(predictor(image), VOID)))
    return sheet(rows, ("image", "seen labels", "fused masks", "prediction"), 2 * SIDE)


if __name__ == "__main__":
    main()
