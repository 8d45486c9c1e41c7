"""What a run's folder tells of its training, finished or not: settings and log."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_cache.errors import UserError
from trainer.checkpoint import CARD, FAILED
from trainer.config import TrainConfig, default_of, read_config
from trainer.loop import LOG

CONFIG = "config.json"
DEMO = "clipteacher_*"


@dataclass(frozen=True)
class History:
    """A training.

    Args:
        folder: of the run.
        config: its settings.
        lines: of its log, in order: numbers by name, `step` among them.
        unread: how many lines of the log could not be read.

    """

    folder: Path
    config: TrainConfig
    lines: list[dict[str, float]] = field(repr=False)
    unread: int = 0

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
        """What losses that were not finite left behind."""
        return sorted(self.folder.glob(f"{FAILED}_*"))

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """The settings that are not the defaults: (here, default) by name."""
        here = {name: (value, default_of(name)) for name, value in asdict(self.config).items()}
        return {name: pair for name, pair in here.items() if pair[0] != pair[1]}


def read_run(path: Path) -> History:
    """The history of a run's folder.

    Raises UserError if it is none, or its settings cannot be read.
    """
    folder = run_in(path)
    config, lines, unread = read_config(folder / CONFIG), [], 0
    try:
        log = (folder / LOG).read_text() if (folder / LOG).is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / LOG}: cannot be read ({error}); delete it to do without") from None
    for text in log.splitlines():
        # a run that goes on, or was killed, may leave its last line torn
        try:
            line = json.loads(text)
            lines.append({"step": line["step"], **{name: float(value) for name, value in line.items()}})
        except (ValueError, TypeError, AttributeError, KeyError):
            unread += 1
    return History(folder, config, lines, unread)


def run_in(path: Path) -> Path:
    """The run's folder that a path stands for: itself, a checkpoint's or file's parent, or the demo's one student.

    Raises UserError if there is none, or several.
    """
    if not path.exists():
        raise UserError(f"{path}: no such run; pass the folder that `train --out` wrote")
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if (folder / CARD).is_file() and not (folder / CONFIG).is_file() else folder
    if (folder / CONFIG).is_file():
        return folder
    # the demo's folder holds caches beside its students, of which the first is the whole method
    students = sorted(file.parent for file in folder.glob(f"{DEMO}/{CONFIG}"))
    if len(students) == 1:
        return students[0]
    if students:
        raise UserError(f"{path}: holds several runs; pass one of {', '.join(map(str, students))}")
    raise UserError(f"{path}: no run, it has no {CONFIG}; pass the folder that `train --out` wrote")
