"""The demo with longer training: students with and without GLM, at every gamma, against CLIP's dense predictions.

Two students train at a time, one thread each. Prints a markdown table of means and standard deviations over seeds,
then ratios (`--json`: one object with everything, which is also written to `--out`/result.json; demo_long.json next
to this script is that of an earlier full run, see docs/results.md). Rerun it to resume. Gammas are fixed beforehand;
settings were chosen on the split `tune`, not on `val`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.splits import make_split
from experiments.demo import CLIP
from experiments.demo_config import DENSE_CLIP, FULL, SCENES, STUDENT, SWITCHES, WITHOUT_GLM, DemoConfig
from experiments.dense_clip import DenseCLIP
from pipeline.encode_job import load_clip
from pipeline.plan import plan
from pipeline.precompute import execute
from trainer.checkpoint import load
from trainer.checkpoint_folders import checkpoints
from trainer.config import GAMMA, TrainConfig
from trainer.evaluate import evaluate
from trainer.metrics import Metrics, mean_and_std
from trainer.predictor import Predictor
from trainer.segmenter import Segmenter

GAMMAS = (0.0, GAMMA, 5.0)
CPU = torch.device("cpu")
Found = dict[str, list[list[dict[str, float]]]]
"""The figures of a name, by seed and gamma."""


def main() -> None:
    """Cache once, train pair after pair, evaluate everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--images", type=int, default=2500)
    parser.add_argument("--tested", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("runs/demo_long"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    start, resumed = time.perf_counter(), arguments.out.exists()
    demo = DemoConfig(arguments.out, replace(STUDENT, iterations=arguments.iterations, device="cpu"))
    settings = demo.precompute("train", arguments.images)
    execute(plan(settings)).check(0)
    report_progress(start, f"{arguments.images} scenes cached")
    config = replace(demo.student, cache=str(settings.cache))
    images = open_dataset(SCENES, None, "val", arguments.tested)
    found: Found = {FULL: [], WITHOUT_GLM: []}
    for seed in range(arguments.seeds):
        configs = {name: replace(config, seed=seed, **SWITCHES[name]) for name in found}
        runs = {name: replace(demo, student=configs[name]).run(name) for name in found}
        train_together(configs, runs)
        for name, run in runs.items():
            student = load(run, CPU)
            found[name].append(figures(Predictor(student), images))
        report_progress(
            start, f"seed {seed}: hIoU " + ", ".join(f"{name} {found[name][-1][1]['hIoU']:.3f}" for name in found)
        )
    dense = DenseCLIP(load_clip(CLIP, "fp32", "cpu"), make_split(SCENES, images.classes, None), SCENES)
    found[DENSE_CLIP] = [figures(dense, images)]
    result = {
        **run_record(start, resumed),
        "images": arguments.images,
        "tested": arguments.tested,
        "student": {name: value for name, value in asdict(config).items() if name not in ("cache", "seed")},
        "gammas": GAMMAS,
        "runs": found,
        "ratio": ratios(found),
    }
    (arguments.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result) if arguments.json else report(found, result))


def train_together(configs: dict[str, TrainConfig], runs: dict[str, Path]) -> None:
    """Train all at once, each in its own process with one thread; exit with the error if one fails."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    for name, run in runs.items():
        run.mkdir(parents=True, exist_ok=True)
        configs[name].save(run / "requested.json")
        command = [sys.executable, str(Path(__file__).parents[1] / "cli.py"), "train", "--out", str(run)]
        command += ["--config", str(run / "requested.json")] + ["--resume"] * bool(checkpoints(run))
        with (run / "stderr.txt").open("wb") as errors:
            processes[name] = subprocess.Popen(
                command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=errors
            )
    try:
        for name, process in processes.items():
            if code := process.wait():
                lines = (runs[name] / "stderr.txt").read_text().splitlines()
                sys.exit(f"{name}: {lines[-1] if lines else f'exit status {code}'}")
    finally:
        for process in processes.values():
            process.terminate()


def figures(segmenter: Segmenter, images: Dataset) -> list[dict[str, float]]:
    """The four metrics on all test scenes at each gamma."""
    found = evaluate(segmenter, images, GAMMAS)
    return [found.at(gamma).summary for gamma in GAMMAS]


def ratios(found: Found) -> dict[str, float]:
    """mIoU(U) with GLM over that without, at each gamma; and the lead in hIoU over CLIP alone at its best gamma."""
    unseen = {
        name: [np.mean([seed[g]["mIoU_U"] for seed in found[name]]) for g in range(len(GAMMAS))] for name in found
    }
    pairs = zip(GAMMAS, unseen[FULL], unseen[WITHOUT_GLM], strict=True)
    result = {
        f"mIoU(U) with GLM / without at gamma {gamma:g}": float(full / max(without, 1e-9))
        for gamma, full, without in pairs
    }
    full = np.mean([seed[GAMMAS.index(GAMMA)]["hIoU"] for seed in found[FULL]])
    result[f"hIoU at gamma {GAMMA:g} minus CLIP alone at its best"] = float(
        full - max(one["hIoU"] for one in found[DENSE_CLIP][0])
    )
    return result


def report(found: Found, result: dict[str, Any]) -> str:
    """A table of means and standard deviations over seeds in percent, and the ratios."""
    lines = ["| | gamma | pAcc | mIoU(S) | mIoU(U) | hIoU |", "|---|---|---|---|---|---|"]
    for name, seeds in found.items():
        for position, gamma in enumerate(GAMMAS):
            cells = [mean_and_std([seed[position][column] for seed in seeds]) for column in Metrics.COLUMNS]
            lines.append(f"| {name} | {gamma:g} | {' | '.join(cells)} |")
    listed = "; ".join(f"{name}: {value:.2f}" for name, value in result["ratio"].items())
    return "\n".join(lines) + f"\n\n{result['minutes']} minutes; {listed}"


def run_record(start: float, resumed: bool) -> dict[str, Any]:
    """What every result.json records about its run: command, cores, whether it was resumed, and minutes."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "cores": os.cpu_count(),
        "resumed": resumed,
        "minutes": round((time.perf_counter() - start) / 60, 1),
    }


def report_progress(start: float, text: str) -> None:
    """Print the time since the start and a message."""
    print(f"{(time.perf_counter() - start) / 60:.1f} min: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
