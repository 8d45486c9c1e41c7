"""Where GLM's attention goes in the drawn world: to grounds, to things with labels, or to hidden ones.

Eq. 1 over scenes of a run's cache, by the true labels, of which training has those of seen classes alone. Of each kind
the share of the attention is divided by the share of the picture. Prints the ratio of hidden things to seen ones last
(`--json`: an object with "ratio"); 1 would be no preference between them. Of a student that was trained without
attention the weights say what it would have looked at.

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
from data_cache.store import Cache
from data_cache.views import whole
from experiments.attention import attention
from trainer.checkpoint import load

KINDS = ("grounds", "seen things", "hidden things")


def main() -> None:
    """Measure each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", help="Folders of runs on drawn scenes.")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = {str(run): preference(run, asked.scenes) for run in asked.runs}
    mean = {kind: statistics.mean(one[kind] for one in found.values()) for kind in KINDS}
    result = {"ratio": mean["hidden things"] / mean["seen things"], "mean": mean, "runs": found, "scenes": asked.scenes}
    if asked.json:
        print(json.dumps(result))
        return
    for run, one in (found | {"mean": mean}).items():
        print(f"{run}: {', '.join(f'{kind} {value:.2f}' for kind, value in one.items())} times their area")
    print(f"ratio {result['ratio']:.2f}")


def preference(run: Path, scenes: int) -> dict[str, float]:
    """Attention over area, of the pixels of each kind of class, all scenes together."""
    student = load(run, torch.device("cpu"))
    cache = Cache(Path(student.config.cache or ""))
    images, cls = open_dataset("scenes", None, "train", scenes), cache.load(cache.mask_name(None)).cls
    things = [name in THINGS for name in images.classes]
    kind_of = np.full(256, len(KINDS))  # void is of no kind
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
