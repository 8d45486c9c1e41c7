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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an untrained student with text features of the tiny CLIP."""
    from students import make_student  # imports PyTorch, which many tests do without

    return make_student(tmp_path_factory.mktemp("student") / "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, where caches and datasets are looked for as well."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in ("CLIPTEACHER_CACHE", "CLIPTEACHER_DATA"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A headless browser from the PATH; skips the test if there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser to open the page in: none of {', '.join(NAMES)} is on the PATH")
    return Browser(program, tmp_path_factory.mktemp("browser"))
