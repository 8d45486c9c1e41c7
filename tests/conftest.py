"""Fixtures for all rooms."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of a few real photographs, `coco/` and `camvid/`, which `$CLIPTEACHER_TEST_DATA` names."""
    name = os.environ.get("CLIPTEACHER_TEST_DATA")
    if not name:
        pytest.skip("CLIPTEACHER_TEST_DATA is not set")
    if not Path(name).is_dir():
        pytest.skip(f"CLIPTEACHER_TEST_DATA: no such folder: {name}")
    return Path(name)
