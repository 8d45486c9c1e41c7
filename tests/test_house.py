"""The rules of the house: which room may import which, how long a file may be, what the README promises."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline.weights import TINY_CONFIG, TINY_WEIGHTS

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"data_cache": set(), "pipeline": {"data_cache"}, "trainer": {"data_cache"}}
ROOMS["experiments"] = set(ROOMS)
SOURCES = [f for room in ROOMS for f in sorted((REPOSITORY / room).rglob("*.py"))] + [REPOSITORY / "cli.py"]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_in_one_direction(room):
    others = (set(ROOMS) | {"cli"}) - {room} - ROOMS[room]
    files = list((REPOSITORY / room).rglob("*.py"))
    assert files
    for file in files:
        assert not imported(file) & others, file


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_a_file_is_short_and_says_what_it_is(file):
    text = file.read_text()
    assert text.count("\n") <= 400
    assert ast.get_docstring(ast.parse(text))


def test_nothing_is_unpickled_and_no_limit_of_pillow_is_lifted():
    for file in SOURCES:
        text = file.read_text()
        assert "MAX_IMAGE_PIXELS" not in text, file
        assert not {"pickle", "cloudpickle", "joblib"} & imported(file), file
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, file


@pytest.mark.parametrize("page", ["paper-to-code", "guarantees"])
def test_each_function_and_test_a_page_names_exists(page):
    text = (REPOSITORY / f"docs/{page}.md").read_text()
    functions = re.findall(r"`((?:pipeline|trainer|data_cache|experiments)/[\w/]+\.py)(?:::([\w.]+))?`", text)
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(functions) > 15 or page == "guarantees"
    assert len(tests) > 15
    for file, name in functions + tests:
        source = (REPOSITORY / file).read_text()
        for part in name.split(".") if name else ():
            assert re.search(rf"(def|class) {part}\b|^{part}\b", source, re.MULTILINE), (file, name)


def test_the_readme_names_commands_that_exist():
    readme = (REPOSITORY / "README.md").read_text()
    for script in re.findall(r"python ([\w/]+\.py)", readme):
        assert (REPOSITORY / script).is_file(), script
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme):
        assert (REPOSITORY / picture).is_file(), picture


def test_the_console_script_and_the_rooms_are_packaged():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["clipteacher"] == "cli:main"
    assert {*ROOMS, "cli.py"} <= set(project["tool"]["hatch"]["build"]["packages"])


def test_the_tiny_clip_is_part_of_the_repository():
    for file in (TINY_CONFIG, TINY_WEIGHTS, TINY_WEIGHTS.with_suffix(".json"), TINY_WEIGHTS.with_suffix(".jsonl")):
        name = str(file.relative_to(REPOSITORY))
        assert file.is_file()
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=REPOSITORY, check=False).returncode == 1
