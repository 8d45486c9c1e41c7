"""Finds the folders of runs and checkpoints. Imports nothing heavy: a misspelled path is refused at once."""

import re
from pathlib import Path

from data_cache.errors import UserError
from data_cache.messages import did_you_mean, first_names
from data_cache.system.files import is_file
from trainer.card import CARD
from trainer.config import CONFIG

STEP, FAILED = "step", "failed"
PASS = "; pass the folder that `train --out` wrote"
DEMO_RUNS = "clipteacher_*"
"""Runs of the full method in a folder of the demo."""


def checkpoints(run: Path, kind: str = STEP) -> list[Path]:
    """The checkpoint folders of a run, the oldest first. Folders with other names are not checkpoints."""
    return [path for path in _named(run, kind) if path.is_dir()]


def check_names(run: Path) -> None:
    """Raise UserError if a file has the name of a checkpoint folder."""
    for path in (*_named(run, STEP), *_named(run, FAILED)):
        if not path.is_dir():
            raise UserError(f"{path}: is not a checkpoint but is named like one; rename it, or pass another --out")


def run_in(path: Path) -> Path:
    """The folder of the run at a path: the run itself, or a checkpoint or file in it, or a folder of the demo.

    In a folder of the demo, it is the only run of the full method.

    Raises UserError, with the nearest runs, if there is no run, or several.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run{did_you_mean(str(path), runs_in(path.parent)) or PASS}")
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if is_file(folder / CARD) and not is_file(folder / CONFIG) else folder
    if is_file(folder / CONFIG) or checkpoints(folder):
        return folder
    full = sorted(file.parent for file in folder.glob(f"{DEMO_RUNS}/{CONFIG}"))
    if len(full) == 1:
        return full[0]
    runs = [str(run) for run in full] or runs_in(folder)
    raise UserError(f"{path}: not a run (no {CONFIG}){f'; runs in it: {first_names(runs)}' if runs else PASS}")


def latest(path: Path) -> Path:
    """The checkpoint at a path, or the newest one of the run at it (`run_in`).

    Raises UserError, with the nearest runs, if there is no checkpoint.
    """
    folder = path if path.is_dir() else path.parent
    if is_file(folder / CARD):
        return folder
    run = run_in(path)
    steps = [step for step in checkpoints(run) if is_file(step / CARD)]
    if not steps:
        raise UserError(f"{run}: has no checkpoint yet; wait for it, or resume with `train --out {run} --resume`")
    return steps[-1]


def run_of(path: Path) -> Path:
    """The folder of the run that the newest checkpoint at `path` is in; the checkpoint itself if it is in none.

    Raises UserError if there is no checkpoint.
    """
    folder = latest(path)
    folder = folder if folder.name else folder.resolve()
    return folder.parent if folder in [*_named(folder.parent, STEP), *_named(folder.parent, FAILED)] else folder


def runs_in(folder: Path) -> list[str]:
    """The paths of the runs that are directly in a folder."""
    return [str(path) for path in sorted(folder.iterdir()) if checkpoints(path)] if folder.is_dir() else []


def check_target(path: Path) -> None:
    """Raise UserError, with the nearest runs, if neither a cache nor a run is there."""
    if not path.exists():
        hint = did_you_mean(str(path), runs_in(path.parent)) or "; pass the path of either"
        raise UserError(f"{path}: no such cache or run{hint}")


def _named(run: Path, kind: str) -> list[Path]:
    name = re.compile(rf"{kind}_[0-9]{{8}}")
    return sorted(path for path in run.iterdir() if name.fullmatch(path.name)) if run.is_dir() else []
