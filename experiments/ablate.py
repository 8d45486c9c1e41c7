"""Every row of the paper's ablation tables, and our own switches: trained, measured, and set in a table."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.distributed import as_completed

from data_cache.callbacks import Log, ignore
from data_cache.content import OK
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.reader import Cache
from data_cache.source_dataset import open_source_dataset
from data_cache.system.atomic import atomic_write
from experiments.ablate_config import FULL, VARIANTS, AblateConfig
from experiments.presets import paper
from experiments.stages import Clock, silent, trained
from pipeline.config import ClusterConfig
from pipeline.dask.local import local_client
from pipeline.recluster import recluster
from trainer.config import GAMMA, TrainConfig
from trainer.evaluate import evaluate, pick_gamma
from trainer.metrics import Metrics
from trainer.predictor import Predictor

GAMMAS = (0.0, GAMMA, 5.0)
PICKED, SAMPLES = "picked", 150
"""Beside fixed gammas one that `pick_gamma` chooses for each student on so many training images: what 1.5 means to a
student depends on its logits, and a row may differ from another in nothing else."""
RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One training of one row, small enough to travel."""

    row: str
    config: TrainConfig
    folder: Path
    images: Dataset
    samples: Dataset

    def __call__(self) -> dict[str, Any]:
        """Train and measure, or read what was measured before with the same settings."""
        settings = asdict(self.config) | {"tested": len(self.images)}
        file = self.folder / RESULT
        if file.is_file() and (report := json.loads(file.read_text()))["settings"] == settings and PICKED in report:
            return report
        start, student = time.perf_counter(), Predictor(trained(self.config, self.folder, silent, Clock()))
        gammas = {f"{gamma:g}": gamma for gamma in GAMMAS}
        with suppress(UserError):  # of images without labels, or a student that knows nothing, none can be picked
            gammas[PICKED] = pick_gamma(student, self.samples)
        found = evaluate(student, self.images, tuple(gammas.values()))
        found.check()
        report = {
            "row": self.row,
            "seed": self.config.seed,
            "minutes": (time.perf_counter() - start) / 60,
            "settings": settings,
            PICKED: gammas.get(PICKED),
            "metrics": {name: found.at(gamma).summary for name, gamma in gammas.items()},
        }
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(report, indent=2) + "\n")
        return report


def ablate(config: AblateConfig, full: TrainConfig, log: Log = ignore) -> dict[str, Any]:
    """Train and measure every row with every seed; an interrupted call resumes where it stopped.

    A row that asks for what the full method has already, as a loss stride of 4 does of the demo, is not trained again.
    `config.jobs` trainings run at a time, more than one in Dask processes with one thread each.

    Raises:
        UsageError, UserError: what clustering, training and evaluation raise.

    """
    start, alike = time.perf_counter(), _runs(config, full)
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in config.names}
    for done, (run, result) in enumerate(_carried_out([runs[0] for runs in alike.values()], config.jobs), 1):
        rows = [one.row for one in alike[run.config]]
        for row in rows:
            results[row].append(result)
        hiou = 100 * result["metrics"][f"{GAMMA:g}"]["hIoU"]
        name = f"{' = '.join(rows)}, seed {result['seed']}"
        log(f"{done} of {len(alike)}: {name}: hIoU {hiou:.1f}, {result['minutes']:.1f} min")
    for found in results.values():
        found.sort(key=lambda result: result["seed"])
    report = {
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "full": asdict(replace(full, cache=Path(full.cache or "").name)),
        "rows": {
            row: [{name: one[name] for name in ("seed", "minutes", PICKED, "metrics")} for one in found]
            for row, found in results.items()
        },
    }
    for name, text in {RESULT: json.dumps(report, indent=2), "table.md": markdown(report)}.items():
        with atomic_write(config.out / name) as draft:
            draft.write_text(text + "\n")
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """The rows in per cent, mean and standard deviation over seeds, the paper's figures beside those it has.

    `against full` is what a row's hIoU has more than the full method's of the same seed: seeds differ more than rows.
    """
    columns = list(Metrics.COLUMNS)
    head = (*Metrics.COLUMNS.values(), "against full", "paper")
    lines = [f"| | | gamma | {' | '.join(head)} |", "|---|---|---|" + "---|" * len(head)]
    full = {one["seed"]: one["metrics"] for one in report["rows"].get(FULL, ())}
    for row, found in report["rows"].items():
        printed = paper()["ablations"].get(row, {})
        picked = [PICKED] if all(PICKED in one["metrics"] for one in found) else []
        for gamma in (f"{GAMMA:g}", *picked, *(f"{g:g}" for g in GAMMAS if g != GAMMA)):
            values = [[one["metrics"][gamma][name] for one in found] for name in columns]
            cells = [_spread(value) for value in values]
            theirs = [full[one["seed"]][gamma]["hIoU"] for one in found if gamma in full.get(one["seed"], ())]
            fair = row != FULL and len(theirs) == len(found)
            cells.append(_spread(np.subtract(values[columns.index("hIoU")], theirs), "+") if fair else "")
            same = printed and f"{printed.get('gamma', GAMMA):g}" == gamma
            cells.append("/".join(map(str, printed["figures"])) if same else "")
            shown = gamma if gamma != PICKED else f"{PICKED} {'/'.join(f'{one[PICKED]:g}' for one in found)}"
            lines.append(f"| {VARIANTS[row].table} | {row} | {shown} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float] | np.ndarray, sign: str = "") -> str:
    """Mean and standard deviation in per cent."""
    spread = np.std(values, ddof=1) if len(values) > 1 else 0.0
    return f"{100 * np.mean(values):{sign}.1f} ± {100 * spread:.1f}"


def _runs(config: AblateConfig, full: TrainConfig) -> dict[TrainConfig, list[Run]]:
    """All runs by their settings."""
    cache = Cache(Path(full.cache or ""))
    about = cache.fingerprint["dataset"]
    trained_on = open_source_dataset(cache, config.root)
    images = open_dataset(about["name"], trained_on.root, "val", config.tested)
    samples = trained_on.subset([i for i, (_, status) in enumerate(cache.statuses()) if status == OK][:SAMPLES])
    runs: dict[TrainConfig, list[Run]] = {}
    for row in config.names:
        variant, masks = VARIANTS[row], full.masks
        if variant.cluster:
            masks = row.replace("-", "_").replace(".", "_")
            recluster(ClusterConfig(cache.path, masks, config.root, **variant.cluster))
        for seed in range(config.seeds):
            student = replace(full, **variant.train, seed=seed, masks=masks)
            runs.setdefault(student, []).append(Run(row, student, config.out / f"{row}_{seed}", images, samples))
    return runs


def _carried_out(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if jobs == 1:
        yield from ((run, run()) for run in runs)
        return
    with local_client(jobs, True, tasks=1) as client:
        futures = {client.submit(run.__call__, pure=False, retries=0): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
