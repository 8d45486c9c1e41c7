"""Fixtures for all rooms."""

import os
from pathlib import Path

import pytest
from command_line import CommandLine
from pictures import draw_folder


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
    draw_folder(tmp_path / "drawn", {"train": 6, "val": 2})
    return tmp_path / "drawn"
