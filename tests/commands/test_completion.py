"""Shell completion: every option with known names completes to them, quickly, and nothing else is printed."""

import os
import subprocess
import sys

import pytest
import typer
from command_line import REPOSITORY

import cli
from commands.completion import COMPLETIONS
from data_cache.datasets import DATASETS
from experiments.presets import PRESETS, STUDENTS
from pipeline.teacher.names import clip_configs, pretrained_tags

GROUP = typer.main.get_command(cli.app)
HEAVY = ("torch", "open_clip", "timm", "segmentation_models_pytorch", "zarr", "dask", "scipy", "pandas")
PROGRAM = f"""
import atexit, sys
atexit.register(lambda: sys.exit(f"heavy: {{loaded}}") if (loaded := {set(HEAVY)} & set(sys.modules)) else None)
sys.argv = ["clipteacher"]
import cli
cli.main()
"""


def complete(*words: str) -> list[str]:
    """What a shell offers for the last of some words."""
    context = GROUP.make_context("clipteacher", [], resilient_parsing=True)
    if len(words) > 1:
        command = GROUP.commands[words[0]]
        context = command.make_context(words[0], [*words[1:-1]], parent=context, resilient_parsing=True)
    option = next((entry for entry in context.command.params if len(words) > 2 and words[-2] in entry.opts), None)
    source = option or context.command
    return [item.value for item in source.shell_complete(context, words[-1])]


def in_bash(*words: str, shell: str = "bash") -> subprocess.CompletedProcess:
    """Run the program as bash does when the user presses the tab key after some words."""
    asked = {"_CLIPTEACHER_COMPLETE": f"complete_{shell}", "COMP_CWORD": str(len(words))}
    asked |= {
        "COMP_WORDS": "\n".join(["clipteacher", *words]),
        "_TYPER_COMPLETE_ARGS": " ".join(["clipteacher", *words]),
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, env=os.environ | asked, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pre",), {"precompute", "predict"}),
        (("precompute", "--dataset", ""), set(DATASETS)),
        (("precompute", "--retry"), {"--retry-failed"}),
        (("train", "--preset", "co"), {"context", "coco", "context-ablation"}),
        (("reproduce", ""), set(PRESETS)),
        (("reproduce", "coco", "--test-on", "ade150,v"), {"ade150,voc", "ade150,voc20"}),
    ],
)
def test_bash_gets_only_the_names_and_nothing_heavy_is_imported(words, expected):
    done = in_bash(*words)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert set(done.stdout.split()) == expected


def test_zsh_and_fish_get_the_names():
    assert '"folder"' in in_bash("precompute", "--dataset", "fo", shell="zsh").stdout
    fish = in_bash("precompute", "--dataset", "fo", shell="fish")
    assert (fish.returncode, fish.stderr) == (0, "")


@pytest.mark.parametrize("command", GROUP.commands)
def test_every_option_with_listed_choices_completes_to_them(command):
    for entry in GROUP.commands[command].params:
        listed = (entry.help or "").partition("One of: ")[2].split(".")[0]
        if listed:
            assert complete(command, entry.opts[0], "") == listed.split(", "), entry.opts
        elif entry.name in COMPLETIONS:
            assert complete(command, entry.opts[0], ""), entry.opts


def test_names_that_depend_on_other_options():
    tags = [*pretrained_tags()["ViT-B-16-quickgelu"], "random"]
    assert "openai" in tags
    assert complete("precompute", "--clip-weights", "") == tags  # of the default CLIP
    assert complete("precompute", "--clip", "ViT-B-16-quickgelu", "--clip-weights", "") == tags
    assert complete("precompute", "--clip", "tiny", "--clip-weights", "") == ["scenes", "crowd", "random"]
    assert complete("evaluate", "run", "--dataset", "camvid", "--split", "") == ["train", "val", "test"]
    rows = [f"no-glm,no-{row}" for row in ("nel", "ce", "generate", "nel-dot", "ce-dot", "glm-dot", "generate-dot")]
    assert complete("ablate", "--rows", "no-glm,no-") == rows


def test_clip_names_encoders_and_students_complete():
    assert set(complete("precompute", "--clip", "")) == {*clip_configs(), "tiny"}
    assert "mit_b0" in complete("train", "--encoder", "mit")
    assert "tu-convnext_tiny" in complete("train", "--encoder", "tu-convnext_t")
    assert complete("train", "--encoder", "tu") == ["tu-"]
    assert complete("train", "--student", "") == list(STUDENTS)


def test_paths_are_left_to_the_shell():
    for flag in ("--root", "--cache"):
        assert complete("precompute", flag, "") == []
    assert complete("info", "") == []


def test_installation_writes_the_shells_file(tmp_path):
    code = "import sys; sys.argv = ['clipteacher', '--install-completion', 'bash']; import cli; cli.main()"
    environment = os.environ | {"HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = (tmp_path / ".bash_completions/clipteacher.sh").read_text()
    assert "_CLIPTEACHER_COMPLETE=complete_bash" in script
    assert "clipteacher.sh" in (tmp_path / ".bashrc").read_text()


def test_completion_of_a_script_is_refused(clipteacher):
    result = clipteacher("--install-completion")
    assert result.status == 2
    assert "clipteacher --install-completion" in result.error


@pytest.mark.parametrize("command", ["", *GROUP.commands])
def test_help_pages_fit_80_columns_and_state_each_default_once(clipteacher, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = clipteacher.good(*filter(None, (command,)), "--help").out
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    for kind in ("bool", "str", "int", "float", "path"):
        assert f"<{kind}>" not in shown
    assert "…" not in shown
    assert "[dim]" not in shown
    for entry in (GROUP.commands[command] if command else GROUP).params:
        assert entry.help, entry.name
        told = entry.help.count("default") + bool(getattr(entry, "show_default", False) and entry.default)
        assert told <= 1, entry.help
