"""Statistics of COCO-Stuff photographs and of the crowded world, side by side, from which the latter was designed.

    python benchmarks/crowd_statistics.py --root DIR

Photographs with a map of things only say nothing about stuff: they count for the rows of things only. A class is
present if it covers 0.1 % of the picture; the area of a class is that in one picture. Prints the ratio of the median
area of a thing to COCO's last (`--json`: an object with "ratio").
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.datasets.crowd import CROWD
from data_cache.splits import make_split

PRESENT = 0.001
COCO_THINGS = 80
"""The first classes of COCO-Stuff are things."""
QUARTILES = (25, 50, 75)
AREA = "area of a thing class, %"


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="COCO-Stuff; by default as for --dataset coco.")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    coco = [open_dataset("coco", arguments.root, split) for split in ("train", "val")]
    crowd = open_dataset("crowd", None, "train", arguments.scenes)
    things = {"coco": np.arange(len(coco[0].classes)) < COCO_THINGS, "crowd": np.isin(crowd.classes, CROWD.things)}
    found = {name: statistics(sets, things[name]) for name, sets in {"coco": coco, "crowd": [crowd]}.items()}
    ratio = found["crowd"][AREA][2] / found["coco"][AREA][2]
    if arguments.json:
        print(json.dumps({"ratio": ratio, **found}))
        return
    width = max(map(len, found["coco"]))
    print(f"{'':{width}}  {'COCO-Stuff':>30}  {'crowd':>30}")
    for name, values in found["coco"].items():
        cells = (" ".join(f"{value:.1f}" for value in column) for column in (values, found["crowd"][name]))
        print(f"{name:{width}}  {'  '.join(f'{cell:>30}' for cell in cells)}")
    print(f"ratio {ratio:.2f}")


def statistics(datasets: Iterable[Dataset], is_thing: Bool[np.ndarray, "class"]) -> Mapping[str, list[float]]:
    """Each statistic; of distributions the mean and the quartiles."""
    share, unseen = _shares(datasets)
    complete = share[:, ~is_thing].sum(axis=1) > 0
    present = share >= PRESENT
    areas = {name: 100 * share[:, kind][present[:, kind]] for name, kind in (("thing", is_thing), ("stuff", ~is_thing))}
    return {
        "pictures, with stuff": [len(share), complete.sum()],
        "classes per picture": _summary(present[complete].sum(axis=1)),
        "thing classes per picture": _summary(present[:, is_thing].sum(axis=1)),
        "stuff classes per picture": _summary(present[complete][:, ~is_thing].sum(axis=1)),
        AREA: _summary(areas["thing"]),
        "area of a stuff class, %": _summary(areas["stuff"]),
        "pixels of stuff, things, void, %": [
            100 * share[complete][:, ~is_thing].sum(axis=1).mean(),
            100 * share[complete][:, is_thing].sum(axis=1).mean(),
            100 * (1 - share[complete].sum(axis=1).mean()),
        ],
        "pixels of unseen classes, %": [100 * share[complete][:, unseen].sum(axis=1).mean()],
        "occurrences of things: top tenth, lower half, %": _tail(present[:, is_thing].sum(axis=0)),
        "occurrences of stuff: top tenth, lower half, %": _tail(present[complete][:, ~is_thing].sum(axis=0)),
    }


def _shares(datasets: Iterable[Dataset]) -> tuple[Float[np.ndarray, "picture class"], Int[np.ndarray, "unseen"]]:
    """The share of each picture that each class covers, and the ids of unseen classes."""
    rows = []
    for dataset in datasets:
        classes = dataset.classes
        for i in range(len(dataset)):
            label = dataset.label(i)
            assert label is not None, "both have labels"
            rows.append(np.bincount(label.ravel(), minlength=256)[: len(classes)] / label.size)
    return np.stack(rows), make_split(dataset.name, classes, None).unseen_index


def _summary(values: Float[np.ndarray, "value"] | Int[np.ndarray, "value"]) -> list[float]:
    return [float(np.mean(values)), *np.percentile(values, QUARTILES).tolist()]


def _tail(occurrences: Int[np.ndarray, "class"]) -> list[float]:
    """Percentage of all occurrences that the most frequent tenth of the classes has, and the less frequent half."""
    ranked = np.sort(occurrences)[::-1] / occurrences.sum()
    cumulative = np.concatenate([[0], np.cumsum(ranked)])
    at = np.interp([0.1 * len(ranked), 0.5 * len(ranked)], np.arange(len(cumulative)), cumulative)
    return [100 * float(at[0]), 100 * float(1 - at[1])]


if __name__ == "__main__":
    main()
