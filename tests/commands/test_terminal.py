"""Terminal output: no file or class name can forge a line or move the cursor, and no encoding ends a command."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from command_line import REPOSITORY, TINY
from shapes import CLASSES, draw_shapes

from commands.console import echo, echo_error, show
from data_cache.errors import UserError
from data_cache.messages import UNPRINTABLE, printable
from viewer.reader import ImageRecord

NASTY = "a\nerror: forged\x1b[2J\x9b1m\x7f\r\u202etxt.png"
UNSEEN = "caf\u00e9\u2066"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of one valid and one broken image; their names and a class name contain control characters."""
    folder = tmp_path_factory.mktemp("nasty")
    draw_shapes(folder / "drawn", {"train": 2})
    images = folder / "drawn/images/train"
    (images / "000.png").rename(images / f"sound{NASTY}")
    (images / f"broken{NASTY}").write_bytes(b"none")
    (folder / "drawn/classes.txt").write_text("\n".join((*CLASSES, UNSEEN)))
    command = ("precompute", "--dataset", "folder", "--root", folder / "drawn", "--unseen", UNSEEN, *TINY)
    done = run_cli(*command, "--cache", folder / "c.zarr", "--dense", "none")
    assert done.returncode == 1
    assert "failed images/train/broken" in done.stderr
    assert is_escaped(done.stdout + done.stderr)
    return folder / "c.zarr"


def run_cli(*arguments, shell="", **environment):
    """Run the command line in its own process; `shell` is appended to the command, as in `| head`."""
    command = [sys.executable, "cli.py", *map(str, arguments)]
    if shell:
        command = ["bash", "-o", "pipefail", "-c", f'"$@" {shell}', "bash", *command]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | environment, capture_output=True, check=False)
    done.stdout, done.stderr = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    return done


def is_escaped(text):
    """Whether a program's output has no control characters and no forged line."""
    joined = text.replace("\n", "").replace("\r", "")
    return not UNPRINTABLE.search(joined) and not any(line.startswith("error: forged") for line in text.splitlines())


def test_untrusted_names_are_escaped_in_all_output(clipteacher, cache, tmp_path):
    for command in (("info", cache), ("verify", cache), ("show", cache, "--out", tmp_path / "p.png", "--json")):
        result = clipteacher(*command)
        assert is_escaped(result.out + result.err), command
    shown = clipteacher.good("info", cache, "--json")
    assert list(shown.json["failures"]) == [f"images/train/broken{NASTY}"]
    assert shown.json["unseen"]["default"] == [UNSEEN]
    shutil.copytree(cache, tmp_path / NASTY)
    shutil.rmtree(tmp_path / NASTY / "cls/c")
    assert is_escaped(clipteacher("verify", tmp_path / NASTY).out)


@pytest.mark.parametrize("number", [*range(32), *range(127, 160), 0x2028, 0x202E, 0x2066, 0xD800, 0xDFFF])
def test_control_characters_are_escaped_and_json_stays_valid(number):
    text = f"a{chr(number)}b"
    assert printable(text).isascii()
    assert printable(text).isprintable()
    assert json.loads(printable(json.dumps(text, ensure_ascii=False))) == text


def test_printable_text_of_any_script_is_unchanged():
    text = "Zürich 東京 \u200dनमस्ते 👩\u200d🎨 [red]"
    assert printable(text) == text


def test_multi_line_errors_cannot_forge_lines(capsys):
    echo_error(UserError("camvid is not here", "  it needs:  a\nb", "  put it at: c"))
    assert capsys.readouterr().err == "error: camvid is not here\n  it needs:  a\\nb\n  put it at: c\n"
    echo("x\nerror: y", "note: ")
    assert capsys.readouterr().err == "note: x\\nerror: y\n"
    show(["x\ny", "z"])
    assert capsys.readouterr().out == "x\\ny\nz\n"


def test_prefixed_errors_keep_their_lines():
    error = UserError("one", "two").prefixed("zero: ")
    assert error.lines == ["zero: one", "two"]
    assert str(error) == "zero: one\ntwo"
    assert error._render_traceback_() == ["error: zero: one\ntwo"]


def test_notebook_reprs_are_escaped(cache):
    from viewer.reader import open_cache

    assert all(repr(record).isprintable() for record in open_cache(cache) if isinstance(record, ImageRecord))


def test_ascii_terminals_are_supported(cache):
    for more in ((), ("--json",)):
        done = run_cli("info", cache, *more, PYTHONIOENCODING="ascii", LC_ALL="POSIX")
        assert done.returncode == 0
        assert done.stdout.isascii()
    assert json.loads(done.stdout)["unseen"]["default"] == [UNSEEN]
    assert run_cli("info", "--help", PYTHONIOENCODING="ascii").returncode == 0
    assert run_cli("info", "n\u00f6\udcff", PYTHONIOENCODING="ascii").returncode == 1


def test_closed_pipe_is_not_an_error(cache):
    for shell in ("| true", "2>&1 | true", "| head -c 5"):
        assert run_cli("info", cache, shell=shell).stderr == ""


def test_full_disk_is_reported(cache):
    done = run_cli("info", cache, shell="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == "error: stdout: the disk is full; make room and rerun the command\n"
