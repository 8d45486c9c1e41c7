"""Fixtures for all tests."""

import os
import shutil
from pathlib import Path

import pytest
from browser import NAMES, Browser
from command_line import CommandLine
from shapes import draw_shapes


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images (`coco/` and `camvid/`) that `$CLIPTEACHER_TEST_DATA` names."""
    name = os.environ.get("CLIPTEACHER_TEST_DATA")
    if not name:
        pytest.skip("CLIPTEACHER_TEST_DATA is not set")
    if not Path(name).is_dir():
        pytest.skip(f"CLIPTEACHER_TEST_DATA: no such folder: {name}")
    return Path(name)


@pytest.fixture
def clipteacher(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    """Runs the command line in this process."""
    return CommandLine(capsys, monkeypatch)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """A `folder` dataset of 6 training and 2 validation images of shapes."""
    draw_shapes(tmp_path / "drawn", {"train": 6, "val": 2})
    return tmp_path / "drawn"


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A headless browser from the PATH; skips the test if there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to open the page in: none of {', '.join(NAMES)} is on the PATH")
    return Browser(program, tmp_path_factory.mktemp("browser"))
