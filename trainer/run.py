"""The folder of a run: its lock, its settings (config.json) and its log (log.jsonl)."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from data_cache.callbacks import Log
from data_cache.errors import UsageError, UserError, disk_errors, one_line
from data_cache.system.atomic import atomic_write, draft_paths, remove
from data_cache.system.files import is_file
from data_cache.system.lock import writer_lock
from trainer.card import read_card
from trainer.checkpoint_folders import FAILED, STEP, check_names, checkpoints, latest
from trainer.config import CONFIG, LOG, TrainConfig, overridden, read_config

LOCK = "train.lock"
Line = dict[str, float]


def full_disk_advice(run: Path) -> str:
    """Advice for a run that can no longer be written."""
    if checkpoints(run):
        return f"the newest checkpoint is kept: make room, then resume with `train --out {run} --resume`"
    return "nothing was saved yet: make room, then rerun the command"


@contextmanager
def exclusive_run(run: Path) -> Iterator[None]:
    """Lock a run for writing. Its folder is created, and removed again if nothing is written into it.

    The lock is inside the folder, so that every machine that shares the folder sees it. Leftovers of a killed training
    are removed.

    Raises:
        UserError: another training holds the lock, the disk is full or not writable, or a file or folder has the name
            of a checkpoint, the settings or the log.

    """
    with disk_errors(run, lambda: full_disk_advice(run)):
        created = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        try:
            with writer_lock(run, "another training", "--out", run / LOCK):
                check_names(run)
                for name in (CONFIG, LOG):
                    if (run / name).is_dir():
                        raise UserError(
                            f"{run / name}: is a folder but must be a file; rename it, or pass another --out"
                        )
                for name in (CONFIG, LOG, STEP, FAILED):
                    for draft in draft_paths(run / name):
                        remove(draft)
                yield
        finally:
            with suppress(OSError):  # the folder is not empty
                if created:
                    run.rmdir()


def run_config(run: Path, log: Log, **overrides: Any) -> TrainConfig:
    """The settings of a run, overridden by every override that is not None.

    If config.json is missing or damaged, they are read from the newest checkpoint, and `log` receives a message.

    Raises:
        UsageError: config.json has an invalid setting.
        UserError: there is no run, or neither source can be read.

    """
    if not (run / CONFIG).is_file() and not checkpoints(run):
        raise UserError(f"--resume: no run in {run}; pass its folder with --out, or omit --resume")
    try:
        return read_config(run / CONFIG, **overrides)
    except UsageError:
        raise
    except UserError as error:
        if not checkpoints(run):
            raise
        reason = one_line(error).removeprefix("--config ")  # the user did not pass it
    folder = latest(run)
    settings = overridden(read_card(folder)["config"], **overrides)
    log(f"{reason}; using the settings of {folder.name}")
    return settings


def read_log(path: Path) -> tuple[list[Line], int]:
    """The lines of a log in order, and how many could not be read. A missing file has no lines."""
    texts = _texts(path)
    lines = [line for text in texts if (line := parse_line(text)) is not None]
    return lines, len(texts) - len(lines)


def repair_log(path: Path, log: Log) -> None:
    """Remove all lines that cannot be read, and report their number to `log`."""
    texts = _texts(path)
    valid = [text for text in texts if parse_line(text)]
    if dropped := len(texts) - len(valid):
        _write(path, valid)
        log(f"{path}: dropped {dropped} line{'s'[: dropped > 1]} that could not be read")


def reopen_log(path: Path, step: int) -> TextIO:
    """Open the log for appending, after removing unreadable lines and those of updates after `step`."""
    lines = ((text, parse_line(text)) for text in _texts(path))
    _write(path, [text for text, line in lines if line and line["step"] <= step])
    return path.open("a", encoding="utf-8")


def parse_line(text: bytes) -> Line | None:
    """A line of a log as numbers by name, or None if it is truncated, not UTF-8, or has no valid step."""
    try:
        line = json.loads(text.decode("utf-8-sig"))
        if not isinstance(line, dict) or {*map(type, line.values())} - {int, float} or type(line["step"]) is not int:
            return None
        return {name: float(value) for name, value in line.items()} if line["step"] > 0 else None
    except (ValueError, KeyError, OverflowError, RecursionError):
        return None


def _texts(path: Path) -> list[bytes]:
    return [text for text in path.read_bytes().split(b"\n") if text.strip()] if is_file(path) else []


def _write(path: Path, texts: list[bytes]) -> None:
    with atomic_write(path) as draft:
        draft.write_bytes(b"".join(text + b"\n" for text in texts))
