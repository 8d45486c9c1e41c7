"""One factor at a time: what it takes for attention to beat mean pooling (Table 4) in the crowded world.

Each setting trains a student with attention and one with mean pooling from the same encoder, and nothing else differs
from the full method. Stage 1 runs for the settings that change the cache (the length of CLS tokens, views) or its masks
(lambda). Rerun to resume.

    python benchmarks/supervised_start.py
    python benchmarks/attention_sweep.py --jobs 2

Prints hIoU at picked gammas, mean and standard deviation over seeds, and last the ratio of attention to mean with the
first setting, by default the unchanged method (`--json`: an object with "ratio" and the hIoU of each seed).
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.system.atomic import atomic_write
from experiments.ablate import PICKED, ablate
from experiments.ablate_config import AblateConfig
from pipeline.config import ClusterConfig, PrecomputeConfig
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.recluster import recluster
from pipeline.teacher.names import TINY
from pipeline.teacher.weights import TINY_WEIGHTS
from trainer.config import read_config
from trainer.metrics import mean_and_std

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "unchanged": {},
    "tau 0.03": {"tau": 0.03},
    "tau 0.2": {"tau": 0.2},
    "bank 0": {"bank": 0},
    "bank 4": {"bank": 4},
    "GLM x 0.1": {"weight_global": 0.1},
    "GLM x 0.3": {"weight_global": 0.3},
    "GLM x 3": {"weight_global": 3.0},
    "focal x 0.2": {"weight_focal": 20.0},
    **{f"lambda {threshold:g}": {"threshold": threshold} for threshold in (0.7, 0.9)},
    **{f"CLS x {length:g}": {"length": length} for length in (0.25, 0.5, 2.0)},
    "views 4": {"views": 4},
}
"""What differs from the full method: settings of `train`, or of the cache (threshold of fusion, length of CLS tokens,
views)."""
ROWS = ("full", "glm-mean")
STUDENT = Path(__file__).with_name("crowd_student.json")


def main() -> None:
    """Train every pair and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=Path, default=Path("runs/encoder.safetensors"))
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--tested", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS], help="Only these.")
    parser.add_argument("--out", type=Path, default=Path("runs/attention_sweep"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[float]]] = {}
    if not arguments.json:
        print("| | attention | mean | difference |\n|---|---|---|---|", flush=True)
    for name in arguments.settings:
        found[name] = compare(name, dict(SETTINGS[name]), arguments)
        if not arguments.json:
            attention, mean = (np.array(found[name][row]) for row in ROWS)
            cells = (name, mean_and_std(attention), mean_and_std(mean), mean_and_std(attention - mean, "+"))
            print(f"| {' | '.join(cells)} |", flush=True)
    attention, mean = (float(np.mean(values)) for values in next(iter(found.values())).values())
    ratio = attention / max(mean, 1e-9)
    print(json.dumps({"ratio": ratio, "hIoU": found}) if arguments.json else f"ratio {ratio:.2f}")


def compare(name: str, changes: dict[str, Any], arguments: argparse.Namespace) -> dict[str, list[float]]:
    """The hIoU of each row and seed with a setting, at picked gammas."""
    cache = _cache(arguments, changes.pop("length", 1.0), changes.pop("views", 1))
    if threshold := changes.pop("threshold", None):
        changes["masks"] = f"l{round(100 * threshold):03}"
        recluster(ClusterConfig(cache, changes["masks"], threshold=threshold))
    student = replace(read_config(STUDENT, cache=str(cache), iterations=arguments.iterations), **changes)
    ablation = AblateConfig(
        cache,
        start=arguments.start,
        rows=",".join(ROWS),
        seeds=arguments.seeds,
        tested=arguments.tested,
        jobs=arguments.jobs,
        out=arguments.out / name.replace(" ", "_"),
    )
    rows = ablate(ablation, student)["rows"]
    return {row: [result["metrics"][PICKED]["hIoU"] for result in rows[row]] for row in ROWS}


def _cache(arguments: argparse.Namespace, length: float, views: int) -> Path:
    """The cache with CLS tokens of another length, or with more views."""
    path, weights = arguments.out / f"cls_{length:g}_views_{views}.zarr", "crowd"
    if length != 1:
        state = load_file(TINY_WEIGHTS["crowd"])
        state["visual.proj"] = (length * state["visual.proj"].float()).half()
        weights = str(arguments.out / f"cls_{length:g}.safetensors")
        with atomic_write(Path(weights)) as draft:
            save_file(state, draft)
    settings = PrecomputeConfig(
        "crowd", path, clip=TINY, clip_weights=weights, precision="fp32", limit=arguments.images, views=views
    )
    execute(plan(settings)).check(0)
    return path


if __name__ == "__main__":
    main()
