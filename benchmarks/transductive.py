"""Transductive against inductive training in the demo's world: the demo's student, equal updates, several seeds.

One student trains at a time, with one thread. Both settings are evaluated at gammas that need no unseen label: their
defaults, and the one that `evaluate --pick-gamma 150` picks. Prints a line per student, then a markdown table of means
and standard deviations over seeds, and last the difference in hIoU; `--out`/result.json has everything, and
transductive.json next to this script is that of the last full run. Rerun it to resume.
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
from experiments.demo_config import SCENES, STUDENT, DemoConfig
from pipeline.plan import plan
from pipeline.precompute import execute
from trainer.checkpoint import load
from trainer.evaluate import evaluate, pick_gamma
from trainer.metrics import Metrics, mean_and_std
from trainer.predictor import Predictor

SETTINGS = ("transductive", "inductive")
DEFAULT, PICKED = "default", "picked"
Figures = dict[str, float]


def main() -> None:
    """Cache once, train and evaluate one student after the other, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=STUDENT.iterations)
    parser.add_argument("--images", type=int, default=DemoConfig.limit)
    parser.add_argument("--tested", type=int, default=200)
    parser.add_argument("--split", default="val", help="Split to measure on.")
    parser.add_argument("--picked-on", type=int, default=150, help="Training scenes on which gamma is picked.")
    parser.add_argument("--out", type=Path, default=Path("runs/transductive"))
    arguments = parser.parse_args()
    start, resumed = time.perf_counter(), arguments.out.exists()
    demo = DemoConfig(arguments.out, replace(STUDENT, iterations=arguments.iterations, device="cpu"))
    settings = demo.precompute("train", arguments.images)
    execute(plan(settings)).check(0)
    report_progress(start, f"{arguments.images} scenes cached")
    found: dict[str, list[dict[str, Figures]]] = {setting: [] for setting in SETTINGS}
    for setting in SETTINGS:
        for seed in range(arguments.seeds):
            student = replace(
                demo.student, cache=str(settings.cache), seed=seed, transductive=setting == "transductive"
            )
            name, run = f"{setting}, seed {seed}", arguments.out / f"{setting}_{seed}"
            train_together({name: student}, {name: run})
            found[setting].append(measured(run, arguments))
            report_progress(start, f"{name}: {json.dumps(found[setting][-1])}")
    result: dict[str, Any] = {
        **run_record(start, resumed),
        "split": arguments.split,
        "tested": arguments.tested,
        "images": arguments.images,
        "iterations": arguments.iterations,
        "runs": found,
    }
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(report(found))


def measured(run: Path, arguments: argparse.Namespace) -> dict[str, Figures]:
    """The figures of a student at its default gamma and at the picked one; they are stored next to the run."""
    file = run / f"{arguments.split}_{arguments.tested}.json"
    if not file.exists():
        student = load(run, torch.device("cpu"))
        training, tested = (open_dataset(SCENES, None, split) for split in ("train", arguments.split))
        predictor = Predictor(student)
        picked = pick_gamma(predictor, training.subset(range(arguments.picked_on)))
        gammas = {DEFAULT: student.gamma(), PICKED: picked}
        evaluation = evaluate(predictor, tested.subset(range(arguments.tested)), [*{*gammas.values()}])
        figures = {name: {"gamma": gamma, **evaluation.at(gamma).summary} for name, gamma in gammas.items()}
        file.write_text(json.dumps(figures) + "\n")
    return json.loads(file.read_text())


def report(found: dict[str, list[dict[str, Figures]]]) -> str:
    """A table of means and standard deviations over seeds in percent, and the difference of each seed."""
    header = ["setting", "gamma", *Metrics.COLUMNS.values()]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for setting, seeds in found.items():
        for which in (DEFAULT, PICKED):
            gammas = "/".join(f"{gamma:g}" for gamma in dict.fromkeys(one[which]["gamma"] for one in seeds))
            cells = [mean_and_std([one[which][name] for one in seeds]) for name in Metrics.COLUMNS]
            lines.append(f"| {setting} | {which} {gammas} | {' | '.join(cells)} |")
    first, second = ([100 * one[DEFAULT]["hIoU"] for one in found[setting]] for setting in SETTINGS)
    gains = ", ".join(f"{one - other:+.1f}" for one, other in zip(first, second, strict=True))
    return "\n".join([*lines, "", f"hIoU, transductive minus inductive, by seed: {gains}"])


if __name__ == "__main__":
    main()
