"""Finds the folders of checkpoints. Imports nothing heavy, so that a misspelled path is refused at once."""

import re
from pathlib import Path

from data_cache.errors import UserError
from data_cache.messages import did_you_mean, first_names
from data_cache.system.files import is_file
from trainer.card import CARD

STEP, FAILED = "step", "failed"
PASS = "; pass the folder that `train --out` wrote"


def checkpoints(run: Path, kind: str = STEP) -> list[Path]:
    """The checkpoint folders of a run, the oldest first. Folders with other names are not checkpoints."""
    return [path for path in _named(run, kind) if path.is_dir()]


def check_names(run: Path) -> None:
    """Raise UserError if a file has the name of a checkpoint folder."""
    for path in (*_named(run, STEP), *_named(run, FAILED)):
        if not path.is_dir():
            raise UserError(f"{path}: is not a checkpoint but is named like one; rename it, or pass another --out")


def latest(path: Path) -> Path:
    """The newest checkpoint folder of a run. `path` is the run, a checkpoint, or a file in either.

    Raises UserError, with the nearest runs, if there is no checkpoint.
    """
    folder = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint{did_you_mean(str(path), runs_in(path.parent)) or PASS}")
    if is_file(folder / CARD):
        return folder
    steps = [step for step in checkpoints(folder) if is_file(step / CARD)]
    if not steps:
        runs = runs_in(folder)
        raise UserError(f"{path}: no checkpoint in this folder{f'; runs in it: {first_names(runs)}' if runs else PASS}")
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


def _named(run: Path, kind: str) -> list[Path]:
    name = re.compile(rf"{kind}_[0-9]{{8}}")
    return sorted(path for path in run.iterdir() if name.fullmatch(path.name)) if run.is_dir() else []
