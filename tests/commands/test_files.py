"""Where files go (docs/files.md): each command writes below data_cache/ or runs/NAME/, and nowhere else."""

import re
import shutil
from pathlib import Path

import pytest
import typer
from command_line import REPOSITORY, STUDENT, TINY, folder_options
from small_run import small_run

import cli
from data_cache.paths import run_folder
from experiments.predict import AREAS, INDEX, OVERLAY

PAGE = (REPOSITORY / "docs/files.md").read_text()
RESULTS = (OVERLAY, INDEX, AREAS)
HELP = {
    "train": ("--out", "runs/<name of the cache>"),
    "show": ("--out", "figures/<figure>.png"),
    "report": ("--out", "report.html in the run's folder"),
    "predict": ("--out", "predictions in the run's folder"),
    "export": ("--onnx", "student.onnx in the run's folder"),
    "precompute": ("--cache", "./data_cache/<dataset>.zarr"),
    "reproduce": ("--out", "runs/<preset>_<student>"),
    "pull": ("--out", "runs/NAME for a run, and NAME.zarr in the folder of caches"),
    "demo": ("--out", "runs/demo"),
    "ablate": ("--out", "runs/ablate"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("files"))


@pytest.fixture
def run(made, here):
    """A copy of the run outside of the working directory."""
    return Path(shutil.copytree(made.run, here.parent / "elsewhere/coco"))


def files(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_stages_write_the_cache_and_the_run_by_the_name_of_the_dataset(clipteacher, drawn, here):
    done = clipteacher.good("precompute", *folder_options(drawn), *TINY, "--shard", 4)
    assert done.out.startswith("data_cache/folder.zarr: ")
    assert [path.as_posix() for path in Path().rglob("*.zarr")] == ["data_cache/folder.zarr"]
    shown = clipteacher.good("show", "data_cache/folder.zarr", "--images", 1)
    assert shown.out.strip() == "runs/folder/figures/masks.png"
    # a folder that has only figures is not a run yet
    for command in ("report", "predict", "evaluate", "show", "export"):
        more = {"predict": [drawn / "images/val"], "evaluate": ["--dataset", "folder", "--root", drawn]}
        assert clipteacher(command, "runs/folder", *more.get(command, ())).status == 1
    assert "no run in runs/folder" in clipteacher("train", "--resume").error
    options = ("--iterations", 2, "--batch-size", 2, "--size", 64, *STUDENT)
    assert clipteacher.good("train", *options).out.startswith("runs/folder: ")
    assert {path.name for path in here.iterdir()} == {"data_cache", "runs"}
    names = {path.name for path in Path("runs/folder").iterdir()}
    assert names == {"figures", "config.json", "log.jsonl", "step_00000002"}
    assert "contains a trained run" in clipteacher("train", *options).error
    clipteacher.good("train", "--resume")
    assert files(Path("runs/folder/figures")) == {"masks.png"}


def test_figures_of_a_cache_are_in_the_folder_that_train_would_use(clipteacher, made, here):
    result = clipteacher.good("show", made.cache, "--images", 1, "--json").json
    assert files(here) == {"runs/drawn/figures/masks.png"} == {result["out"]}
    assert run_folder(made.cache) == run_folder(Path("drawn")) == Path("runs/drawn")


@pytest.mark.parametrize(
    ("command", "options", "written"),
    [
        ("show", ("--image", 0), ["figures/predictions.png"]),
        ("show", ("--attention", "--images", 1), ["figures/attention.png"]),
        ("report", ("--pictures", 0, "--limit", 1), ["report.html"]),
        (
            "predict",
            ("photo.png",),
            ["predictions/photo.png" + end for end in RESULTS],
        ),
        ("predict", ("photos",), ["predictions/a/b.png" + end for end in RESULTS]),
        pytest.param("export", ("--size", 64), ["student.onnx"], marks=pytest.mark.slow),
        ("evaluate", ("--dataset", "folder"), []),
    ],
)
def test_files_made_from_a_student_go_into_its_run(clipteacher, made, here, run, command, options, written):
    photo = made.root / "images/val/000.png"
    (here / "photos/a").mkdir(parents=True)
    shutil.copy(photo, "photo.png")
    shutil.copy(photo, "photos/a/b.png")
    if command == "evaluate":
        options = (*options, "--root", made.root)
    before = files(here) | files(run)
    result = clipteacher.good(command, run, *options)
    assert files(here) | files(run) == before | set(written)
    assert not written or str(run / written[0].split("/")[0]) in result.out


@pytest.mark.parametrize("name", ["step_*", "step_*/model.safetensors"])
def test_files_made_from_a_checkpoint_go_into_its_run(clipteacher, made, here, run, name):
    checkpoint, before = next(run.glob(name)), files(run)
    clipteacher.good("predict", checkpoint, made.root / "images/val/000.png")
    clipteacher.good("show", checkpoint, "--image", 0)
    assert files(run) - before == {"figures/predictions.png", *("predictions/000.png" + end for end in RESULTS)}
    (run / "student.onnx").mkdir()
    assert f"{run / 'student.onnx'}: is a folder" in clipteacher("export", checkpoint).error
    assert not files(here)


def test_files_made_from_a_checkpoint_outside_of_a_run_go_into_the_checkpoint(clipteacher, made, here, run):
    alone = Path(shutil.copytree(next(run.glob("step_*")), here.parent / "student"))
    clipteacher.good("predict", alone, made.root / "images/val/000.png")
    assert clipteacher.good("show", alone, "--image", 0).out.strip() == str(alone / "figures/predictions.png")
    assert not files(here)
    assert (alone / "predictions/000.png.overlay.png").is_file()
    assert {path.name for path in here.parent.iterdir()} == {"elsewhere", "here", "student"}


def test_reading_commands_write_nothing(clipteacher, made, here):
    clipteacher.good("info", made.cache)
    clipteacher.good("verify", made.cache)
    assert not files(here)


@pytest.mark.parametrize("command", sorted(typer.main.get_command(cli.app).commands))
def test_page_says_where_each_command_writes(command):
    assert re.search(rf"^\| .*`{command}\b", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", HELP)
def test_help_says_where_files_go(command):
    flag, words = HELP[command]
    (option,) = [one for one in typer.main.get_command(cli.app).commands[command].params if flag in one.opts]
    assert words in option.help
