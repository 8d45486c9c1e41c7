"""The documentation: every file, symbol, test, anchor and image that a page or a docstring names exists."""

import ast
import re
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest
import typer

import cli

REPOSITORY = Path(__file__).parents[1]
ROOMS = (
    *("data_cache", "pipeline", "trainer", "viewer", "experiments", "commands", "clipteacher"),
    *("tests", "benchmarks", "docs"),
)
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
MODULES = [
    *(file for room in ROOMS for file in sorted((REPOSITORY / room).rglob("*.py"))),
    REPOSITORY / "cli.py",
]
PATH = re.compile(rf"(?<![\w/.$])((?:{'|'.join(ROOMS)})/[\w./-]*\w/?|cli\.py)(?:::([\w.]+\w))?(?![\w/])")
WRITTEN_LATER = re.compile(r"data_cache/(<dataset>|\w+\.zarr)")
"""A cache below the working directory, which no checkout holds."""
ENTRY = re.compile(r"^## (.+?)\n\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def name_of(file: Path) -> str:
    return file.relative_to(REPOSITORY).as_posix()


@cache
def symbols(file: Path) -> set[str]:
    """Functions, classes and variables of a module, those of a class as `Class.name`."""
    found = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
                if isinstance(node, ast.ClassDef):
                    collect(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    collect(ast.parse(file.read_text()).body, "")
    return found


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that Markdown renderers generate for the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing(text: str) -> list[str]:
    """The files, folders and symbols that a text names and that do not exist."""
    lost = []
    for match in PATH.finditer(text):
        path, symbol = match.groups()
        if WRITTEN_LATER.match(text, match.start()):
            continue
        file = REPOSITORY / path
        if not file.exists() or (symbol and symbol not in symbols(file)):
            lost.append(match.group())
    return lost


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_symbols_named_by_a_page_exist(page):
    assert missing(page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_existing_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.resolve()), target


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_pages_that_modules_refer_to_exist(module):
    text = module.read_text()
    for path, anchor in re.findall(r"(docs/[\w/-]+\.md)(?:#([\w-]+))?", text):
        assert (REPOSITORY / path).is_file(), path
        assert not anchor or anchor in anchors(REPOSITORY / path), f"{path}#{anchor}"


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs/decisions").glob("*.md")), ids=name_of)
def test_each_decision_has_a_reason_code_and_a_test(page):
    entries = ENTRY.findall(page.read_text())
    assert len(entries) > 10
    for heading, body in entries:
        assert re.findall(r"^- \*\*(\w+)\*\*:", body, re.MULTILINE) == ["Decision", "Why", "Code", "Test"], heading
        code, test = re.findall(r"^- \*\*(?:Code|Test)\*\*: (.*)", body, re.MULTILINE)
        assert PATH.search(code), heading
        assert re.search(r"tests/[\w/]+\.py::test_\w+", test), heading


@pytest.mark.parametrize("page", ["paper-to-code", "guarantees"])
def test_each_claim_in_a_table_names_a_test(page):
    rows = re.findall(r"^\| .*", (REPOSITORY / f"docs/{page}.md").read_text(), re.MULTILINE)[1:]
    assert len(rows) > 30
    for row in rows:
        assert re.search(r"`tests/[\w/]+\.py", row.rsplit("|", 2)[1]), row


def test_api_reference_is_current():
    sys.path.insert(0, str(REPOSITORY / "docs"))
    import api

    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run `python docs/api.py`"


def test_every_page_is_linked():
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())
        if not target.startswith("http")
    }
    assert set((REPOSITORY / "docs").rglob("*.md")) <= linked


@pytest.mark.parametrize(
    "line",
    [
        line.strip()
        for name in ("README.md", "docs/export.md", "docs/sharing.md")
        for line in (REPOSITORY / name).read_text().splitlines()
        if line.startswith("    python cli.py ")
    ],
)
def test_commands_of_the_pages_parse(line):
    name, *arguments = shlex.split(line, comments=True)[2:]
    command = typer.main.get_command(cli.app).commands[name]
    command.make_context(name, arguments).close()  # raises for an option or a value that does not exist
