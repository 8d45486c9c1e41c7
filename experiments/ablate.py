"""Trains and evaluates every row of the paper's ablation tables and our own variants, and writes a table."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from data_cache.callbacks import Log, ignore
from data_cache.content import OK
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UserError
from data_cache.reader import Cache
from data_cache.source_dataset import open_source_dataset
from data_cache.system.atomic import atomic_write
from experiments.ablate_config import FULL, VARIANTS, AblateConfig
from experiments.parallel import run_parallel
from experiments.presets import paper
from experiments.stages import StageTimer, silent, train_stage
from experiments.start_encoder import start_encoder
from pipeline.config import ClusterConfig
from pipeline.recluster import recluster
from trainer.config import GAMMA, TrainConfig, without_folders
from trainer.evaluate import evaluate, pick_gamma
from trainer.metrics import Metrics, mean_and_std
from trainer.predictor import Predictor

GAMMAS = (0.0, GAMMA, 5.0)
PICKED = "picked"
"""Name of the gamma that `pick_gamma` chooses for each student: the effect of a fixed gamma depends on the scale of the
logits, in which rows differ."""
SAMPLES = 150
"""Number of training images on which gamma is picked."""
RESULT, TABLE = "result.json", "table.md"


@dataclass(frozen=True)
class Run:
    """One training of one row, which can be pickled for another process.

    Args:
        row: name of the row.
        config: training settings.
        folder: the run's folder.
        images: test images.
        samples: training images on which gamma is picked.

    """

    row: str
    config: TrainConfig
    folder: Path
    images: Dataset
    samples: Dataset

    def __call__(self) -> dict[str, Any]:
        """Train and evaluate, or read the saved result of the same settings."""
        settings = asdict(self.config) | {"tested": len(self.images)}
        file = self.folder / RESULT
        if file.is_file() and (report := json.loads(file.read_text()))["settings"] == settings and PICKED in report:
            return report
        start = time.perf_counter()
        predictor = Predictor(train_stage(self.config, self.folder, silent, StageTimer()))
        gammas = {f"{gamma:g}": gamma for gamma in GAMMAS}
        with suppress(UserError):  # the samples have no labels, or no prediction is correct
            gammas[PICKED] = pick_gamma(predictor, self.samples)
        evaluation = evaluate(predictor, self.images, tuple(gammas.values()))
        evaluation.check()
        report = {
            "row": self.row,
            "seed": self.config.seed,
            "minutes": (time.perf_counter() - start) / 60,
            "settings": settings,
            PICKED: gammas.get(PICKED),
            "metrics": {name: evaluation.at(gamma).summary for name, gamma in gammas.items()},
        }
        with atomic_write(file) as draft:
            draft.write_text(json.dumps(report, indent=2) + "\n")
        return report


def ablate(config: AblateConfig, full: TrainConfig, log: Log = ignore) -> dict[str, Any]:
    """Train and evaluate every row with every seed. Rerun to resume.

    All rows of a seed are trained before the next seed, so an interrupted ablation has whole seeds: rerun it with fewer
    `config.seeds` for their table. With `config.start`, students begin from that encoder. With `config.jobs` above 1,
    trainings run in parallel processes of one thread each. Rows with equal settings share one training (the demo's full
    method has a loss stride of 4, for example).

    Raises UsageError or UserError as clustering, training and evaluation do.
    """
    start = time.perf_counter()
    if config.start:
        full = replace(full, encoder_weights=str(start_encoder(config.start, full, config.out)))
    runs_by_config = _plan_runs(config, full)
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in config.names}
    unique_runs = [runs[0] for runs in runs_by_config.values()]
    for done, (run, result) in enumerate(_execute(unique_runs, config.jobs), 1):
        rows = [same.row for same in runs_by_config[run.config]]
        for row in rows:
            results[row].append(result)
        hiou = 100 * result["metrics"][f"{GAMMA:g}"]["hIoU"]
        name = f"{' = '.join(rows)}, seed {result['seed']}"
        log(f"{done} of {len(unique_runs)}: {name}: hIoU {hiou:.1f}, {result['minutes']:.1f} min")
    report = {
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "full": without_folders(asdict(full)),
        "rows": {
            row: [
                {name: result[name] for name in ("seed", "minutes", PICKED, "metrics")}
                for result in sorted(of_row, key=lambda result: result["seed"])
            ]
            for row, of_row in results.items()
        },
    }
    for name, text in {RESULT: json.dumps(report, indent=2), TABLE: markdown(report)}.items():
        with atomic_write(config.out / name) as draft:
            draft.write_text(text + "\n")
    log(f"saved as {config.out / TABLE} and {config.out / RESULT}")
    return report


def markdown(report: Mapping[str, Any]) -> str:
    """A table in percent: mean and standard deviation over seeds, and the paper's figures where it has them.

    `against full` is the difference of hIoU to the full method of the same seed, since seeds differ more than rows. For
    the rows that end in -dot, the full method is logits-dot.
    """
    header = (*Metrics.COLUMNS.values(), "against full", "paper")
    lines = [f"| | | gamma | {' | '.join(header)} |", "|---|---|---|" + "---|" * len(header)]
    for row, results in report["rows"].items():
        variant = VARIANTS[row]
        full = {result["seed"]: result["metrics"] for result in report["rows"].get(variant.baseline, ())}
        published = paper()["ablations"][variant.paper] if variant.paper else {}
        picked = [PICKED] if all(PICKED in result["metrics"] for result in results) else []
        for gamma in (f"{GAMMA:g}", *picked, *(f"{g:g}" for g in GAMMAS if g != GAMMA)):
            values = {name: [result["metrics"][gamma][name] for result in results] for name in Metrics.COLUMNS}
            cells = [mean_and_std(column) for column in values.values()]
            baseline = [full[r["seed"]][gamma]["hIoU"] for r in results if gamma in full.get(r["seed"], ())]
            comparable = row != FULL and len(baseline) == len(results)
            cells.append(mean_and_std(np.subtract(values["hIoU"], baseline), "+") if comparable else "")
            same_gamma = published and f"{published.get('gamma', GAMMA):g}" == gamma
            cells.append("/".join(map(str, published["figures"])) if same_gamma else "")
            label = gamma if gamma != PICKED else f"{PICKED} {'/'.join(f'{r[PICKED]:g}' for r in results)}"
            lines.append(f"| {variant.table} | {row} | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _plan_runs(config: AblateConfig, full: TrainConfig) -> dict[TrainConfig, list[Run]]:
    """All runs, grouped by training settings. Mask sets that rows need are clustered here."""
    cache = Cache(Path(full.cache or ""))
    source = open_source_dataset(cache, config.root)
    images = open_dataset(cache.fingerprint["dataset"]["name"], source.root, "val", config.tested)
    samples = source.subset([i for i, (_, status) in enumerate(cache.statuses()) if status == OK][:SAMPLES])
    masks = dict.fromkeys(config.names, full.masks)
    for row in config.names:
        if cluster := VARIANTS[row].cluster:
            masks[row] = row.replace("-", "_").replace(".", "_")
            recluster(ClusterConfig(cache.path, masks[row], root=config.root, **cluster))
    runs: dict[TrainConfig, list[Run]] = {}
    for seed, row in product(range(config.seeds), config.names):
        settings = replace(full, **VARIANTS[row].train, seed=seed, masks=masks[row])
        runs.setdefault(settings, []).append(Run(row, settings, config.out / f"{row}_{seed}", images, samples))
    return runs


def _execute(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if jobs == 1:
        yield from ((run, run()) for run in runs)
        return
    yield from ((runs[index], result) for index, result in run_parallel(runs, jobs))
