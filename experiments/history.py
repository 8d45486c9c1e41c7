"""The history of a finished or unfinished training: settings and log, read from the run's folder."""

from dataclasses import dataclass, field
from pathlib import Path

from data_cache.system.files import unreadable_error
from trainer.checkpoint_folders import FAILED, checkpoints, run_in
from trainer.config import TrainConfig
from trainer.run import LOG, read_log, run_config


@dataclass(frozen=True)
class History:
    """The settings and the log of a training.

    Args:
        folder: the run's folder.
        config: the training settings.
        lines: the lines of the log in order; each maps names, including `step`, to numbers.
        damage: one line per part that could not be read.

    """

    folder: Path
    config: TrainConfig
    lines: list[dict[str, float]] = field(repr=False)
    damage: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        """The last update in the log; 0 before the first."""
        return int(self.lines[-1]["step"]) if self.lines else 0

    @property
    def finished(self) -> bool:
        """Whether the log has the last update."""
        return self.step >= self.config.iterations

    @property
    def failed(self) -> list[Path]:
        """The states that were saved when a loss was not finite."""
        return checkpoints(self.folder, FAILED)


def read_run(path: Path) -> History:
    """Read the history of a run. Raises UserError if there is no run, or its settings cannot be read."""
    folder = run_in(path)
    damage: list[str] = []
    config = run_config(folder, damage.append)
    try:
        lines, unread = read_log(folder / LOG)
    except OSError as error:
        raise unreadable_error(error, folder / LOG) from None
    if unread:
        damage.append(f"{unread} line{'s'[: unread > 1]} of the log: torn or damaged")
    return History(folder, config, lines, tuple(damage))
