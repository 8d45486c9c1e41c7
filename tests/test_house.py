"""The rules of the code base: which room may import which, how long files and functions may be, what is packaged."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from pipeline.teacher.weights import TINY_CONFIG, TINY_WEIGHTS

REPOSITORY = Path(__file__).parents[1]
ROOMS = {"data_cache": set(), "pipeline": {"data_cache"}, "trainer": {"data_cache"}, "viewer": {"data_cache"}}
ROOMS["experiments"] = set(ROOMS)
ROOMS["commands"] = set(ROOMS)
ROOMS["clipteacher"] = set(ROOMS)
SOURCES = [f for room in ROOMS for f in sorted((REPOSITORY / room).rglob("*.py"))] + [REPOSITORY / "cli.py"]

LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 300, 60


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module or "")
    return {name.split(".")[0] for name in names}


def module_file(name: str) -> Path | None:
    """The file of a module of this repository; None for other modules."""
    stem = REPOSITORY.joinpath(*name.split("."))
    return next((file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()), None)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_imported_names_exist(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in ROOMS:
            continue
        source = module_file(node.module)
        assert source, f"line {node.lineno}: {node.module}"
        names = {name for each in ast.walk(ast.parse(source.read_text())) for name in defined(each)}
        for alias in node.names:
            found = alias.name in names or module_file(f"{node.module}.{alias.name}")
            assert found, f"line {node.lineno}: {node.module}.{alias.name}"


def defined(node: ast.AST) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    return [node.id] if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_in_one_direction(room):
    others = (set(ROOMS)) - {room} - ROOMS[room]
    files = [file for file in (REPOSITORY / room).rglob("*.py") if file.name != "__main__.py"]
    assert files
    for file in files:
        assert not imported(file) & others, file


def imported_at_the_top(file: Path) -> set[Path]:
    """Modules of this repository that a file imports outside of functions, including imports for type checking."""
    found, waiting = set(), list(ast.parse(file.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {module_file(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            own = [module_file(f"{node.module}.{alias.name}") or module_file(node.module or "") for alias in node.names]
            found.update(own)
        elif not isinstance(node, ast.FunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
    return {each for each in found if each} - {file}


def test_no_circular_imports():
    graph = {file: imported_at_the_top(file) & set(SOURCES) for file in SOURCES}
    assert sum(map(len, graph.values())) > 300
    left = dict(graph)
    while free := [file for file, needs in left.items() if not needs & left.keys()]:
        for file in free:
            del left[file]
    assert not left, sorted(file.relative_to(REPOSITORY).as_posix() for file in left)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_files_are_short_and_have_a_docstring(file):
    text = file.read_text()
    assert text.count("\n") <= LINES_OF_A_FILE
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(REPOSITORY).as_posix())
def test_functions_are_short(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


def test_nothing_is_unpickled_and_pillow_limits_stay():
    for file in SOURCES:
        text = file.read_text()
        assert "MAX_IMAGE_PIXELS" not in text, file
        assert not {"pickle", "cloudpickle", "joblib"} & imported(file), file
        for call in re.findall(r"torch\.load\([^)]*\)", text):
            assert "weights_only=True" in call, file


def test_scripts_and_images_of_the_readme_exist():
    readme = (REPOSITORY / "README.md").read_text()
    for script in re.findall(r"python ([\w/]+\.py)", readme):
        assert (REPOSITORY / script).is_file(), script
    for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", readme):
        assert (REPOSITORY / image).is_file(), image


def test_console_script_and_rooms_are_packaged():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    assert project["project"]["scripts"]["clipteacher"] == "cli:main"
    assert {*ROOMS, "cli.py"} <= set(project["tool"]["hatch"]["build"]["packages"])


def test_tiny_clip_is_part_of_the_repository():
    weights = [
        file.with_suffix(suffix) for file in TINY_WEIGHTS.values() for suffix in (".safetensors", ".json", ".jsonl")
    ]
    for file in (TINY_CONFIG, *weights):
        name = str(file.relative_to(REPOSITORY))
        assert file.is_file()
        assert subprocess.run(["git", "check-ignore", "-q", name], cwd=REPOSITORY, check=False).returncode == 1
