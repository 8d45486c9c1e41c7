"""Where GLM's attention goes in synthetic scenes: to stuff, to seen things, or to unseen things.

Computes eq. 1 over scenes of a run's cache, and sums it per kind of class in the ground truth. For each kind, the share
of the attention is divided by the share of the area. Prints the ratio of unseen to seen things last (`--json`: an
object with "ratio"); 1 means no preference. For a student trained without attention, it shows where attention would go.

    python benchmarks/attention_share.py runs/demo/clipteacher_0
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import open_dataset
from data_cache.datasets.scenes import THINGS
from data_cache.reader import Cache
from data_cache.views import whole
from experiments.figures import attention
from trainer.checkpoint import load

KINDS = ("stuff", "seen things", "unseen things")


def main() -> None:
    """Measure each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="Folders of runs on synthetic scenes.")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = {str(run): preference(run, arguments.scenes) for run in arguments.runs}
    mean = {kind: statistics.mean(one[kind] for one in found.values()) for kind in KINDS}
    result = {
        "ratio": mean["unseen things"] / mean["seen things"],
        "mean": mean,
        "runs": found,
        "scenes": arguments.scenes,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for run, one in (found | {"mean": mean}).items():
        print(f"{run}: {', '.join(f'{kind} {value:.2f}' for kind, value in one.items())} times their area")
    print(f"ratio {result['ratio']:.2f}")


def preference(run: Path, scenes: int) -> dict[str, float]:
    """Share of the attention over share of the area, per kind of class, over all scenes."""
    student = load(run, torch.device("cpu"))
    cache = Cache(Path(student.config.cache or ""))
    images, cls = open_dataset("scenes", None, "train", scenes), cache.load(cache.mask_name(None)).cls
    things = [name in THINGS for name in images.classes]
    kind_of = np.full(256, len(KINDS))  # void has no kind
    kind_of[: len(things)] = things
    kind_of[student.split.unseen_index] = 2
    mass, area = np.zeros(len(KINDS) + 1), np.zeros(len(KINDS) + 1)
    for index in range(len(images)):
        image, label = images.load(index)
        assert label is not None, "scenes have labels"
        weights = attention(student, cls[index, 0], image, whole(*label.shape))
        rows, columns = (np.arange(n) * m // n for n, m in zip(label.shape, weights.shape, strict=True))
        share, kind = weights[rows][:, columns], kind_of[label]
        mass += np.bincount(kind.ravel(), (share / share.sum()).ravel(), len(mass))
        area += np.bincount(kind.ravel(), minlength=len(area)) / kind.size
    return dict(zip(KINDS, (mass / area).tolist(), strict=False))


if __name__ == "__main__":
    main()
