"""Results are written atomically: a full disk or a kill never leaves a partial file."""

import ast
import errno

import numpy as np
import pytest
from PIL import Image
from test_house import REPOSITORY, SOURCES

from data_cache.datasets.scenes import SCENES
from data_cache.datasets.worlds import Scenes
from data_cache.system import atomic as drafts

WRITES = ("write_text", "write_bytes", "save", "savefig")
ELSEWHERE = {"trainer/config.py", "trainer/checkpoint.py", "trainer/resume.py", "trainer/loop.py"} | {
    "experiments/drawn_images.py"
}
"""Files with drafts of their own, the loop that calls them, and one that draws into a temporary folder."""
WHOLE = "config.save(out / CONFIG)"
"""A training config writes itself atomically."""
TEMPORARY = ("draft", "stream", "file", "(draft")
"""A draft, a file in it, or memory."""


@pytest.fixture(autouse=True)
def _photograph(here):
    Image.fromarray(Scenes(SCENES, "val", 1).image(0)).save(here / "p.png")


COMMANDS = {
    "predict": (("p.png",), "out", {"p.png.index.png", "p.png.overlay.png", "p.png.areas.json"}),
    "show": (("--dataset", "scenes", "--images", 1, "--device", "cpu"), "out/shown.png", {"shown.png"}),
}


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("command", COMMANDS)
def test_full_disk_keeps_previous_results_and_names_the_file(clipteacher, run, here, monkeypatch, command):
    arguments, out, expected = COMMANDS[command]
    clipteacher.good(command, run, *arguments, "--out", out)
    before = files(here / "out")
    assert before.keys() == expected

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(drafts, "fsync", full)
    result = clipteacher(command, run, *arguments, "--out", out, "--gamma", 0.25)
    assert "Errno" not in result.error
    assert "out/" in result.error
    assert "the disk is full; free some space" in result.error
    assert files(here / "out") == before


@pytest.mark.parametrize("path", [*SOURCES, REPOSITORY / "docs/pictures.py"], ids=lambda path: path.name)
def test_results_are_written_to_a_draft_first(path):
    if path.relative_to(REPOSITORY).as_posix() in ELSEWHERE:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        where = ast.unparse(node)
        if node.func.attr in WRITES and where != WHOLE:
            target = node.args[0] if node.func.attr.startswith("save") else node.func.value
            assert ast.unparse(target).startswith((*TEMPORARY, "Path(folder,")), where
        if node.func.attr == "open" and node.args and ast.unparse(node.args[0]) == "'w'":
            assert "jsonl" in where, where  # a log grows line by line


def test_images_are_written_as_png(clipteacher, run, here):
    clipteacher.good("predict", run, "p.png", "--out", "out")
    for name in ("index", "overlay"):
        with Image.open(here / f"out/p.png.{name}.png") as image:
            assert image.format == "PNG"
            assert np.asarray(image).any()
