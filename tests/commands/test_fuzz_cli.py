"""Garbage values for every option of every command: one line and an exit status, never a traceback."""

import shutil

import pytest
import typer
from command_line import STUDENT, TINY, folder_options
from shapes import draw_shapes

import cli

NUMBERS = ("-1", "0", "nan", "inf", "-inf", "x", "", "1e999", "3.7", "٣", "--")
WORDS = ("", " ", "no-such-thing", "../..", "a,,b", "é<&>'\"%s{0}[red]", "-", "0", "1,x", "\u200b", "a" * 300)
BEFORE_LONG_WORK = {
    "demo": "experiments.demo.run",
    "reproduce": "experiments.reproduce.reproduce",
    "ablate": "experiments.ablate.ablate",
    "export": "experiments.export._trace",
}
"""Where each command starts work that takes minutes; a value that gets that far is valid."""
GROUP = typer.main.get_command(cli.app)


def options():
    """(command, option, values to try); flags take none."""
    for command, entry in sorted(GROUP.commands.items()):
        for parameter in entry.params:
            if parameter.param_type_name == "option" and not parameter.is_flag and parameter.name != "help":
                number = parameter.metavar in ("<int>", "<float>")
                yield command, parameter.opts[0], NUMBERS if number else WORDS


OPTIONS = list(options())


@pytest.fixture(scope="module")
def templates(tmp_path_factory):
    """A dataset, its cache and a student; tests use copies."""
    folder = tmp_path_factory.mktemp("fuzz")
    draw_shapes(folder / "drawn", {"train": 3, "val": 1})
    with pytest.MonkeyPatch.context() as patch:
        for command in (
            ("precompute", *folder_options(folder / "drawn"), *TINY, "--cache", folder / "c.zarr"),
            ("train", "--cache", folder / "c.zarr", "--out", folder / "run", "--iterations", 1, *SMALL),
            ("push", folder / "c.zarr", f"file://{folder / 'pushed'}"),
        ):
            patch.setattr("sys.argv", ["cli.py", *map(str, command)])
            with pytest.raises(SystemExit) as end:
                cli.main()
            assert not end.value.code
    return folder


SMALL = (*("--batch-size", 2, "--size", 64, "--arch", "fpn", "--encoder", "resnet18"), *STUDENT)


@pytest.fixture
def valid_arguments(templates, tmp_path, monkeypatch):
    """Valid arguments of each command."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(templates, folder)
    data = ("--dataset", "folder", "--root", folder / "drawn")
    cache, run = folder / "c.zarr", folder / "run"
    return {
        "init": (folder / "drawn",),
        "precompute": (*folder_options(folder / "drawn"), *TINY, "--cache", tmp_path / "new.zarr"),
        "train": ("--cache", cache, "--out", tmp_path / "out", "--iterations", 1, *SMALL),
        "evaluate": (run, *data, "--device", "cpu"),
        "cluster": (cache, "--name", "fine"),
        "quality": (cache,),
        "attention": (cache,),
        "verify": (cache, "--live", 1, "--device", "cpu"),
        "info": (cache,),
        "reproduce": ("coco", "--root", folder / "drawn"),
        "ablate": ("--cache", cache),
        "show": (cache,),
        "report": (run,),
        "demo": (),
        "predict": (run, folder / "drawn/images"),
        "export": (run, "--onnx", tmp_path / "student.onnx", "--size", 64),
        "push": (run, f"file://{tmp_path / 'published'}"),
        "pull": (f"file://{folder / 'pushed'}",),
    }


def test_fuzzed_options_cover_most_commands():
    assert len({command for command, _, _ in OPTIONS}) >= 10
    assert len(OPTIONS) > 100


@pytest.mark.parametrize("amount", ["quick", pytest.param("slow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", sorted(GROUP.commands))
def test_garbage_option_values_never_cause_a_traceback(clipteacher, valid_arguments, monkeypatch, command, amount):
    from data_cache.errors import UserError

    def reached(*_: object, **__: object):
        raise UserError("reached the work")

    if command in BEFORE_LONG_WORK:
        monkeypatch.setattr(BEFORE_LONG_WORK[command], reached)
    tried = 0
    for number, (owner, option, values) in enumerate(OPTIONS):
        chosen = values if amount == "slow" else (values[number % len(values)],)
        for value in chosen if owner == command else ():
            result = clipteacher(command, *valid_arguments[command], f"{option}={value}")
            tried += 1
            where = (command, option, value, result.err)
            assert "Traceback" not in result.err, where
            assert result.status in (0, 1, 2), where
            if result.status == 1:
                assert result.err.strip().splitlines()[-1].startswith("error: "), where
            elif result.status == 2:
                assert "error: " in result.err or "Usage:" in result.err, where
    assert tried or command == "info"


@pytest.mark.parametrize("command", sorted(GROUP.commands))
@pytest.mark.parametrize("argument", ["", "no-such", "a" * 300, "\u200b", "-x", "--no-such-option"])
def test_garbage_arguments_never_cause_a_traceback(clipteacher, command, argument, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = clipteacher(command, argument)
    assert result.status in (1, 2)
    assert "Traceback" not in result.err
