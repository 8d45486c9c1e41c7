"""Compares the signs of an ablation with those of the paper's Tables 3 to 5: agrees, disagrees, or cannot tell.

    python benchmarks/paper_signs.py benchmarks/ablation.json

For each row: the difference of hIoU to the full method of the same seed, and its 95 % interval (Student's t, seeds).
A row that the paper puts below the full method agrees if the interval is below 0, and disagrees if it is above 0. The
paper's adapters (Table 5) differ by less than 2 points, so these rows agree if the interval is within 2 points, and
disagree if it is outside. Attention is first if both other poolings agree, and is not if one of them disagrees. In all
other cases, the seeds cannot tell. Prints the share of the comparisons that agree last (`--json`: an object with
"ratio").
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

LOWER = ("no-nel", "no-ce", "no-glm", "no-generate", "glm-max", "glm-mean")
"""Rows that the paper puts below the full method."""
EQUAL = ("vla-mlp", "vla-identity")
POOLINGS = ("glm-max", "glm-mean")
WITHIN = 2.0
"""Points of hIoU."""
BASELINES = {"": "full", "-dot": "logits-dot"}
"""The full method by the suffix of a row: cosine logits, or the plain product of eq. 9."""
AGREES, DISAGREES, UNKNOWN = "agrees", "disagrees", "cannot tell"
Interval = tuple[float, float, float]


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="result.json of cli.py ablate.")
    parser.add_argument("--gammas", nargs="+", default=["1.5", "picked"])
    parser.add_argument("--seeds", type=int, help="Only the first seeds; all by default.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error(f"--seeds {arguments.seeds}: must be at least 1")
    rows = {
        row: results[: arguments.seeds]  # sorted by seed
        for row, results in json.loads(arguments.result.read_text())["rows"].items()
    }
    found = {
        (suffix, gamma): compare(rows, suffix, gamma)
        for suffix, baseline in BASELINES.items()
        for gamma in arguments.gammas
        if {baseline, *(f"{row}{suffix}" for row in (*LOWER, *EQUAL))} <= rows.keys()
    }
    if not found:
        parser.error(f"{arguments.result}: needs the rows full, {', '.join((*LOWER, *EQUAL))}, or those with -dot")
    verdicts = [verdict for table in found.values() for _, verdict in table.values()]
    ratio = verdicts.count(AGREES) / len(verdicts)
    if arguments.json:
        tables = {
            f"{BASELINES[suffix]} at gamma {gamma}": {row: (_bounded(cell[0]), cell[1]) for row, cell in table.items()}
            for (suffix, gamma), table in found.items()
        }
        print(json.dumps({"ratio": ratio, "tables": tables}))
        return
    print(f"| | {' | '.join(f'{BASELINES[suffix]}, gamma {gamma}' for suffix, gamma in found)} |")
    print("|---|" + "---|" * len(found))
    for row in (*LOWER, *EQUAL, "attention first"):
        cells = [_cell(*table[row]) for table in found.values()]
        print(f"| {row} | {' | '.join(cells)} |")
    print(f"ratio {ratio:.2f}")


def compare(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], suffix: str, gamma: str
) -> dict[str, tuple[Interval | None, str]]:
    """The interval and the verdict of each comparison."""
    full = {result["seed"]: result["metrics"][gamma]["hIoU"] for result in rows[BASELINES[suffix]]}
    table: dict[str, tuple[Interval | None, str]] = {}
    for row in (*LOWER, *EQUAL):
        differences = [
            100 * (result["metrics"][gamma]["hIoU"] - full[result["seed"]]) for result in rows[f"{row}{suffix}"]
        ]
        _, low, high = interval = confidence(differences)
        if row in LOWER:
            verdict = AGREES if high < 0 else DISAGREES if low > 0 else UNKNOWN
        else:
            verdict = AGREES if max(-low, high) < WITHIN else DISAGREES if max(low, -high) > WITHIN else UNKNOWN
        table[row] = interval, verdict
    others = {table[row][1] for row in POOLINGS}
    first = AGREES if others == {AGREES} else DISAGREES if DISAGREES in others else UNKNOWN
    return table | {"attention first": (None, first)}


def confidence(values: Sequence[float]) -> Interval:
    """Mean, and the 95 % interval of the mean; infinite for a single value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def _bounded(interval: Interval | None) -> list[float | None] | None:
    """An interval for JSON, which has no infinity."""
    return interval and [bound if np.isfinite(bound) else None for bound in interval]


def _cell(interval: Interval | None, verdict: str) -> str:
    return verdict if interval is None else f"{interval[0]:+.1f} ({interval[1]:+.1f}, {interval[2]:+.1f}): {verdict}"


if __name__ == "__main__":
    main()
