"""The value of a dense recipe for a student: the demo's student on caches of each recipe, three seeds.

Only the masks differ: CLS tokens do not depend on the recipe. The students of one seed train at a time, one thread
each. Prints what it finds as it goes, then a markdown table of means and standard deviations over seeds, and the paired
difference of each recipe to the first one. Writes `--out`/result.json after each seed (`--json`: prints it). Rerun it
to resume. Recipe and lambda were chosen beforehand by the quality of masks on seen classes (docs/results.md).
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo_long import GAMMAS, Found, figures, report_progress, run_record, train_together

from data_cache.datasets import open_dataset
from experiments.demo_config import FULL, SCENES, STUDENT, DemoConfig
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.teacher.recipes import OUTPUT, RECIPES
from trainer.checkpoint import load
from trainer.metrics import Metrics, mean_and_std
from trainer.predictor import Predictor


def main() -> None:
    """Cache with each recipe, then train and evaluate seed after seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=[OUTPUT, "sclip"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=STUDENT.iterations)
    parser.add_argument("--images", type=int, default=DemoConfig.limit)
    parser.add_argument("--tested", type=int, default=DemoConfig.tested)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_recipes"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start, resumed = time.perf_counter(), arguments.out.exists()
    student = replace(STUDENT, iterations=arguments.iterations, device="cpu")
    demos = {recipe: DemoConfig(arguments.out / recipe, student) for recipe in arguments.recipes}
    caches = {}
    for recipe, demo in demos.items():
        settings = replace(demo.precompute("train", arguments.images), dense_recipe=recipe)
        execute(plan(settings)).check(0)
        caches[recipe] = str(settings.cache)
        report_progress(start, f"{recipe}: {arguments.images} scenes cached")
    images = open_dataset(SCENES, None, "val", arguments.tested)
    found: Found = {recipe: [] for recipe in demos}
    for seed in range(arguments.seeds):
        configs = {recipe: replace(student, seed=seed, cache=cache) for recipe, cache in caches.items()}
        runs = {recipe: replace(demo, student=configs[recipe]).run(FULL) for recipe, demo in demos.items()}
        train_together(configs, runs)
        for recipe, run in runs.items():
            found[recipe].append(figures(Predictor(load(run, torch.device("cpu"))), images))
            listed = ", ".join(f"{name} {100 * value:.1f}" for name, value in found[recipe][-1][1].items())
            report_progress(start, f"seed {seed}, {recipe}, gamma {GAMMAS[1]:g}: {listed}")
        result = {
            **run_record(start, resumed),
            "images": arguments.images,
            "tested": arguments.tested,
            "student": {name: value for name, value in asdict(student).items() if name not in ("cache", "seed")},
            "gammas": GAMMAS,
            "runs": found,
        }
        (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if arguments.json else report(result))


def report(result: dict[str, Any]) -> str:
    """A table in percent: each recipe, and its difference to the first recipe seed by seed."""
    lines = [
        f"| recipe | gamma | {' | '.join(Metrics.COLUMNS.values())} |",
        "|---|---|" + "---|" * len(Metrics.COLUMNS),
    ]
    values = {
        recipe: np.array([[[*one.values()] for one in seed] for seed in seeds])
        for recipe, seeds in result["runs"].items()
    }
    first, *others = values
    for name, table in [*values.items(), *((f"{other} - {first}", values[other] - values[first]) for other in others)]:
        for position, gamma in enumerate(result["gammas"]):
            cells = [mean_and_std(column) for column in table[:, position].T]
            lines.append(f"| {name} | {gamma:g} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\n{result['minutes']} minutes"


if __name__ == "__main__":
    main()
