"""Fixtures for all rooms."""

import os
import shutil
from pathlib import Path

import pytest
from browser import NAMES, Browser
from command_line import CommandLine
from pictures import draw_pictures


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of a few real photographs, `coco/` and `camvid/`, which `$CLIPTEACHER_TEST_DATA` names."""
    name = os.environ.get("CLIPTEACHER_TEST_DATA")
    if not name:
        pytest.skip("CLIPTEACHER_TEST_DATA is not set")
    if not Path(name).is_dir():
        pytest.skip(f"CLIPTEACHER_TEST_DATA: no such folder: {name}")
    return Path(name)


@pytest.fixture
def clipteacher(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """The command line, to be called with arguments."""
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A `folder` dataset of 6 training and 2 validation pictures."""
    draw_pictures(tmp_path / "drawn", {"train": 6, "val": 2})
    return tmp_path / "drawn"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A browser without a window, if there is one on the PATH; the test is skipped without."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to open the page in: none of {', '.join(NAMES)} is on the PATH")
    return Browser(program, tmp_path_factory.mktemp("browser"))
