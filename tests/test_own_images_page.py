"""docs/own-images.md: its example runs as printed, and its other commands and options exist."""

import re
import shlex
import subprocess

import onnxruntime
import pytest
import typer
from command_line import REPOSITORY

import cli
from data_cache.datasets.pairing_notes import READABLE_SUFFIXES

PAGE = (REPOSITORY / "docs/own-images.md").read_text()
SCRIPT = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
IN_TEXT = [
    text for text in re.findall(r"`([^`\n]+)`", PAGE) if re.match(r"python cli\.py \w+ [^`]+|init my_data --from", text)
]


@pytest.mark.slow
def test_the_example_runs_as_printed(clipteacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (script,) = SCRIPT
    exec(script, {})
    printed = []
    for line in LINES:
        if line.startswith("python cli.py "):
            printed.append(clipteacher.good(*shlex.split(line)[2:]))
        else:
            subprocess.run(line, shell=True, check=True)
    assert "train: 24 images (24 .jpg), 8 with a label map" in printed[0].out
    assert "placeholders written: 17" in printed[0].out
    assert "water" in printed[1].out
    assert len(list((tmp_path / "runs/folder/predictions").rglob("*.overlay.png"))) == 8
    assert onnxruntime.InferenceSession("student.onnx").get_inputs()[0].name == "image"


@pytest.mark.parametrize("command", IN_TEXT)
def test_commands_in_the_text_parse(command):
    name, *arguments = shlex.split(command.removeprefix("python cli.py "))
    typer.main.get_command(cli.app).commands[name].make_context(name, arguments).close()


def test_options_and_suffixes_of_the_page_exist():
    assert len(IN_TEXT) >= 3
    commands = typer.main.get_command(cli.app).commands.values()
    known = {flag for command in commands for entry in command.params for flag in entry.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known
    assert all(suffix in PAGE for suffix in READABLE_SUFFIXES)
