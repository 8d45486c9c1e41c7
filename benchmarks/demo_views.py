"""The value of more views per image: the demo's student on caches of 1, 2, 4 and 8 views, with equal updates.

Two students train at a time, one thread each. Prints a markdown table of means and standard deviations over seeds and
writes `--out`/result.json; that of the last full run is demo_views.json next to this script. Rerun it to resume.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_long import report_progress, run_record, train_together

from data_cache.datasets import open_dataset
from data_cache.description import bytes_on_disk
from data_cache.reader import Cache
from experiments.demo_config import FULL, SCENES, STUDENT, DemoConfig
from pipeline.plan import plan
from pipeline.precompute import execute
from trainer.checkpoint import load
from trainer.config import GAMMA
from trainer.evaluate import evaluate
from trainer.metrics import Metrics, mean_and_std
from trainer.predictor import Predictor

GAMMAS = (0.0, GAMMA)


def main() -> None:
    """Cache for each number of views, train pair after pair, evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=STUDENT.iterations)
    parser.add_argument("--images", type=int, default=DemoConfig.limit)
    parser.add_argument("--tested", type=int, default=200)
    parser.add_argument("--split", default="val", help="Split to measure on.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo_views"))
    arguments = parser.parse_args()
    start, resumed = time.perf_counter(), arguments.out.exists()
    student = replace(STUDENT, iterations=arguments.iterations, device="cpu")
    configs, runs, size = {}, {}, {}
    for views in arguments.views:
        demo = DemoConfig(arguments.out / f"views_{views}", student, views=views)
        settings = demo.precompute("train", arguments.images)
        execute(plan(settings)).check(0)
        size[views] = bytes_on_disk(Cache(settings.cache))
        report_progress(start, f"{views} views of {arguments.images} scenes cached: {size[views]} bytes")
        for seed in range(arguments.seeds):
            name = f"{views} views, seed {seed}"
            configs[name] = replace(student, seed=seed, cache=str(settings.cache))
            runs[name] = replace(demo, student=configs[name]).run(FULL)
    names = list(runs)
    for pair in (names[i : i + 2] for i in range(0, len(names), 2)):
        train_together({name: configs[name] for name in pair}, {name: runs[name] for name in pair})
        report_progress(start, f"{' and '.join(pair)} trained")
    images = open_dataset(SCENES, None, arguments.split, arguments.tested)
    found: dict[int, list[list[dict[str, float]]]] = {views: [] for views in arguments.views}
    for name, run in runs.items():
        result = evaluate(Predictor(load(run, torch.device("cpu"))), images, GAMMAS)
        found[int(name.split()[0])].append([result.at(gamma).summary for gamma in GAMMAS])
    result: dict[str, Any] = {
        **run_record(start, resumed),
        "split": arguments.split,
        "iterations": arguments.iterations,
        "gammas": GAMMAS,
        "bytes": size,
        "runs": found,
    }
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(report(result))


def report(result: dict[str, Any]) -> str:
    """A table in percent, and MiB without dense tokens (which training does not read) and with them."""
    header = ["views", "gamma", *Metrics.COLUMNS.values(), "MiB", "with dense tokens"]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for views, seeds in result["runs"].items():
        size = {part: count / 2**20 for part, count in result["bytes"][views].items()}
        for position, gamma in enumerate(result["gammas"]):
            cells = [mean_and_std([seed[position][column] for seed in seeds]) for column in Metrics.COLUMNS]
            cells += [f"{size['cls'] + size['masks']:.1f}", f"{sum(size.values()):.0f}"]
            lines.append(f"| {views} | {gamma:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{result['minutes']} minutes, {result['split']}"


if __name__ == "__main__":
    main()
