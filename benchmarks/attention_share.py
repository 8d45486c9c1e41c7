"""Where GLM's attention goes in synthetic scenes: to stuff, to seen things, or to unseen things.

Measures eq. 1 as `cli.py attention` does, over scenes of a run's cache, and sums it per kind of class in the ground
truth. For each kind, the share of the attention is divided by the share of the area. Prints the ratio of unseen to seen
things last (`--json`: an object with "ratio"); 1 means no preference. For a student trained without attention, it shows
where attention would go.

    python benchmarks/attention_share.py runs/demo/clipteacher_0
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import WORLDS
from data_cache.reader import Cache
from experiments.attention import measure
from experiments.config import AttentionConfig
from trainer.run import run_config

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
    cache = Path(run_config(run, print).cache or "")
    found = measure(AttentionConfig(cache, run, limit=scenes))
    things, classes = WORLDS[Cache(cache).fingerprint["dataset"]["name"]].things, enumerate(found.split.classes)
    kind_of = [0 if name not in things else 2 if i in found.split.unseen_index else 1 for i, name in classes]
    shares = {}
    for number, kind in enumerate(KINDS):
        columns = [column for column, own in enumerate(kind_of) if own == number]
        shares[kind] = float(found.mass[:, columns].sum() / found.area[:, columns].sum())
    return shares


if __name__ == "__main__":
    main()
