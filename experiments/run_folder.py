"""Finds the folder of a run from a path. Imports nothing heavy, so that a misspelled path is refused at once."""

from pathlib import Path

from data_cache.errors import UserError
from data_cache.messages import did_you_mean
from trainer.card import CARD
from trainer.checkpoint_folders import PASS, checkpoints, runs_in
from trainer.config import CONFIG

DEMO_RUNS = "clipteacher_*"
"""Runs of the full method in a folder of the demo."""


def run_in(path: Path) -> Path:
    """The run's folder for a path: the path itself, the parent of a checkpoint or file, or the demo's only run.

    Raises UserError if there are no runs, or several.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run{did_you_mean(str(path), runs_in(path.parent)) or PASS}")
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if (folder / CARD).is_file() and not (folder / CONFIG).is_file() else folder
    if (folder / CONFIG).is_file() or checkpoints(folder):
        return folder
    runs = sorted(file.parent for file in folder.glob(f"{DEMO_RUNS}/{CONFIG}"))
    if len(runs) == 1:
        return runs[0]
    if runs:
        raise UserError(f"{path}: contains several runs; pass one of {', '.join(map(str, runs))}")
    raise UserError(f"{path}: not a run (no {CONFIG}){PASS}")


def check_target(path: Path) -> None:
    """Raise UserError, with the nearest runs, if neither a cache nor a run is there."""
    if not path.exists():
        hint = did_you_mean(str(path), runs_in(path.parent)) or "; pass the path of either"
        raise UserError(f"{path}: no such cache or run{hint}")
