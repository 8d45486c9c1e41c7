"""Runs the command line in this process, as `python cli.py ...` would."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

import cli

REPOSITORY = Path(__file__).parents[2]
TINY = (
    "--clip",
    str(REPOSITORY / "tests/helpers/tiny-vit.json"),
    "--clip-weights",
    "random",
    "--device",
    "cpu",
    "--precision",
    "fp32",
)
STUDENT = ("--encoder-weights", "none", "--workers", "0", "--device", "cpu")


def folder_options(root: Path) -> tuple[object, ...]:
    """The options that select a `folder` dataset of drawn shapes and make its disc an unseen class."""
    return ("--dataset", "folder", "--root", root, "--unseen", "disc")


def spawned_processes(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that multiprocessing spawned and that still run."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # also raised for a zombie
            found += [process] * ("spawn_main" in " ".join(process.cmdline()))
    return found


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The error message, which must be the last line and come without a traceback."""
        assert self.status in (1, 2), self
        assert "Traceback" not in self.err
        last = self.err.strip().splitlines()[-1]
        assert last.startswith("error: "), self.err
        return last


class CommandLine:
    def __init__(self, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["cli.py", *map(str, arguments)])
        self._capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return Result(status, *self._capsys.readouterr())

    def good(self, *arguments: object) -> Result:
        result = self(*arguments)
        assert result.status == 0, result
        return result


def in_a_process(*arguments: object, prelude: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run `python cli.py ...` in a process of its own, after the Python code `prelude`."""
    code = f"{prelude}\nimport cli, sys\nsys.argv = ['cli.py', *sys.argv[1:]]\ncli.main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
