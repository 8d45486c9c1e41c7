"""The reference of the Python interface: complete, and its example runs."""

import os
import re
import subprocess
import sys

import pytest
from command_line import REPOSITORY

import clipteacher

sys.path.insert(0, str(REPOSITORY / "docs"))
import api


def test_every_public_name_has_an_entry():
    assert sorted(name for names in api.SECTIONS.values() for name in names) == sorted(clipteacher.__all__)
    assert re.findall(r"^### (.+)$", api.page(), re.MULTILINE) == [n for names in api.SECTIONS.values() for n in names]


def test_every_public_member_has_a_docstring():
    assert not re.findall(r"```\n\n\n|`: `.*`\n\n\n", api.page())


@pytest.mark.slow
def test_example_runs(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CLIPTEACHER_CACHE"}
    environment["PYTHONPATH"] = str(REPOSITORY)
    done = subprocess.run(
        [sys.executable, "-c", api.EXAMPLE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mIoU")
    assert (tmp_path / "overlay.png").stat().st_size > 0
    assert (tmp_path / "runs/scenes/config.json").is_file()
