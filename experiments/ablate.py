"""Every row of the paper's ablation tables, and our own switches: trained, measured, and set in a table."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.distributed import as_completed

from data_cache.content import OK
from data_cache.datasets import open_dataset
from data_cache.datasets.base import Dataset
from data_cache.errors import UsageError, UserError
from data_cache.source import photographs
from data_cache.store import Cache
from experiments.presets import paper
from experiments.stages import Clock, silent, trained
from pipeline.processes import local_client
from pipeline.recluster import Clustering, recluster
from trainer.config import TrainConfig
from trainer.evaluate import GAMMA, Predictor, evaluate
from trainer.gamma import pick_gamma
from trainer.metrics import Metrics

FULL = "full"
GAMMAS = (0.0, GAMMA, 5.0)
PICKED, SAMPLES = "picked", 150
"""Beside fixed gammas one that `pick_gamma` chooses for each student on so many training images: what 1.5 means to a
student depends on its logits, and a row may differ from another in nothing else."""
RESULT = "result.json"


@dataclass(frozen=True)
class Variant:
    """One row: what of the full method is changed.

    Args:
        table: where the paper has it, or `ours`.
        train: settings of training.
        cluster: settings of clustering; masks are then made anew from the cached dense tokens.

    """

    table: str
    train: Mapping[str, Any] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)


VARIANTS: Mapping[str, Variant] = {
    FULL: Variant("full method"),
    "no-nel": Variant("Table 3", {"nel": False}),
    "no-ce": Variant("Table 3", {"ce": False}),
    "no-glm": Variant("Table 3", {"glm": "off"}),
    "no-generate": Variant("Table 3", {"generate": False}),
    "glm-max": Variant("Table 4", {"glm": "max"}),
    "glm-mean": Variant("Table 4", {"glm": "mean"}),
    "vla-mlp": Variant("Table 5", {"vla": "mlp"}),
    "vla-identity": Variant("Table 5", {"vla": "identity"}),
    "pseudo-scope-image": Variant("ours", {"pseudo_scope": "image"}),
    "logits-dot": Variant("ours", {"logits": "dot"}),
    "nel-masked": Variant("ours", {"nel_ignore": "masked"}),
    "loss-stride-1": Variant("ours", {"loss_stride": 1}),
    "loss-stride-4": Variant("ours", {"loss_stride": 4}),
    "bank-0": Variant("ours", {"bank": 0}),
    "bank-4": Variant("ours", {"bank": 4}),
    "weight-global-1": Variant("ours", {"weight_global": 1.0}),
    "lambda-0.7": Variant("ours", cluster={"threshold": 0.7}),
    "lambda-0.9": Variant("ours", cluster={"threshold": 0.9}),
    "windows-3": Variant("ours", cluster={"windows": (3,)}),
    "windows-7": Variant("ours", cluster={"windows": (7,)}),
}


@dataclass(frozen=True)
class Ablation:
    """What is to be compared.

    Args:
        config: the full method, its cache included.
        out: folder of all runs.
        rows: names of `VARIANTS`.
        seeds: trainings of each, seeds 0, 1, ..
        tested: only the first so many images of the split `val`.
        root: of the dataset; where precompute found it by default.

    """

    config: TrainConfig
    out: Path
    rows: Sequence[str] = tuple(VARIANTS)
    seeds: int = 3
    tested: int | None = None
    root: Path | None = None

    def __post_init__(self) -> None:
        if unknown := [row for row in self.rows if row not in VARIANTS]:
            raise UsageError(f"--rows {unknown[0]}: choose {', '.join(VARIANTS)}")
        if self.seeds < 1:
            raise UsageError(f"--seeds {self.seeds}: must be at least 1")


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
        wanted = asdict(self.config) | {"tested": len(self.images)}
        file = self.folder / RESULT
        if file.is_file() and (told := json.loads(file.read_text()))["settings"] == wanted and PICKED in told:
            return told
        start, student = time.perf_counter(), Predictor(trained(self.config, self.folder, silent, Clock()))
        gammas = {f"{gamma:g}": gamma for gamma in GAMMAS}
        with suppress(UserError):  # of images without labels, or a student that knows nothing, none can be picked
            gammas[PICKED] = pick_gamma(student, self.samples)
        found = evaluate(student, self.images, tuple(gammas.values()))
        told = {
            "row": self.row,
            "seed": self.config.seed,
            "minutes": (time.perf_counter() - start) / 60,
            "settings": wanted,
            PICKED: gammas.get(PICKED),
            "metrics": {name: found.at(gamma).summary for name, gamma in gammas.items()},
        }
        draft = file.with_suffix(".partial")
        draft.write_text(json.dumps(told, indent=2) + "\n")
        draft.replace(file)
        return told


def ablate(wanted: Ablation, jobs: int = 1, tell: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Train and measure every row with every seed; interrupted, the same call goes on where it was.

    A row that asks for what the full method has already, as a loss stride of 4 does of the demo, is not trained again.
    `jobs` trainings run at a time, more than one in processes of Dask with one thread each. `tell` hears of each run.

    Raises:
        UsageError, UserError: what clustering, training and evaluation raise.

    """
    start, alike = time.perf_counter(), _runs(wanted)
    results: dict[str, list[dict[str, Any]]] = {row: [] for row in wanted.rows}
    for done, (run, result) in enumerate(_carried_out([runs[0] for runs in alike.values()], jobs), 1):
        rows = [one.row for one in alike[run.config]]
        for row in rows:
            results[row].append(result)
        hiou = 100 * result["metrics"][f"{GAMMA:g}"]["hIoU"]
        name = f"{' = '.join(rows)}, seed {result['seed']}"
        tell(f"{done} of {len(alike)}: {name}: hIoU {hiou:.1f}, {result['minutes']:.1f} min")
    for found in results.values():
        found.sort(key=lambda result: result["seed"])
    full = replace(wanted.config, cache=Path(wanted.config.cache or "").name)
    told = {
        "minutes": round((time.perf_counter() - start) / 60, 1),
        "full": asdict(full),
        "rows": {
            row: [{name: one[name] for name in ("seed", "minutes", PICKED, "metrics")} for one in found]
            for row, found in results.items()
        },
    }
    (wanted.out / RESULT).write_text(json.dumps(told, indent=2) + "\n")
    (wanted.out / "table.md").write_text(markdown(told) + "\n")
    return told


def markdown(told: Mapping[str, Any]) -> str:
    """The rows in per cent, mean and standard deviation over seeds, the paper's figures beside those it has.

    `against full` is what a row's hIoU has more than the full method's of the same seed: seeds differ more than rows.
    """
    columns = list(Metrics.COLUMNS)
    head = (*Metrics.COLUMNS.values(), "against full", "paper")
    lines = [f"| | | gamma | {' | '.join(head)} |", "|---|---|---|" + "---|" * len(head)]
    full = {one["seed"]: one["metrics"] for one in told["rows"].get(FULL, ())}
    for row, found in told["rows"].items():
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


def _runs(wanted: Ablation) -> dict[TrainConfig, list[Run]]:
    """All runs by their settings."""
    cache = Cache(Path(wanted.config.cache or ""))
    about = cache.fingerprint["dataset"]
    trained_on = photographs(cache, wanted.root)
    images = open_dataset(about["name"], trained_on.root, "val", wanted.tested)
    samples = trained_on.picked([i for i, (_, status) in enumerate(cache.statuses()) if status == OK][:SAMPLES])
    runs: dict[TrainConfig, list[Run]] = {}
    for row in wanted.rows:
        variant, masks = VARIANTS[row], wanted.config.masks
        if variant.cluster:
            masks = row.replace("-", "_").replace(".", "_")
            recluster(Clustering(cache.path, masks, wanted.root, **variant.cluster))
        for seed in range(wanted.seeds):
            config = replace(wanted.config, **variant.train, seed=seed, masks=masks)
            runs.setdefault(config, []).append(Run(row, config, wanted.out / f"{row}_{seed}", images, samples))
    return runs


def _carried_out(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if jobs == 1:
        yield from ((run, run()) for run in runs)
        return
    with local_client(jobs, True, tasks=1) as client:
        futures = {client.submit(run.__call__, pure=False, retries=0): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], future.result()
