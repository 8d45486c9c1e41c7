"""The run and the checkpoint that a path means: the same for every command."""

import pytest
from refusals import refused

from trainer.card import CARD
from trainer.checkpoint_folders import latest, run_in, run_of
from trainer.config import CONFIG


def draw_run(run, *steps):
    run.mkdir(parents=True)
    (run / CONFIG).touch()
    for step in steps:
        (run / f"step_{step:08d}").mkdir()
        (run / f"step_{step:08d}" / CARD).touch()
    return run


def test_a_run_is_found_from_its_folder_its_checkpoints_and_its_files(tmp_path):
    run = draw_run(tmp_path / "run", 1, 2)
    early, late = run / "step_00000001", run / "step_00000002"
    for path in (run, early, early / CARD, run / CONFIG):
        assert run_in(path) == run_of(path) == run
    assert [latest(path) for path in (run, run / CONFIG, early, early / CARD)] == [late, late, early, early]


def test_a_folder_of_the_demo_means_its_run_of_the_full_method(tmp_path):
    run = draw_run(tmp_path / "demo/clipteacher_0", 2)
    draw_run(tmp_path / "demo/without_GLM_0", 2)
    demo = tmp_path / "demo"
    assert (run_in(demo), run_of(demo), latest(demo)) == (run, run, run / "step_00000002")
    other = draw_run(demo / "clipteacher_1", 2)
    for find in (run_in, run_of, latest):
        refused(lambda find=find: find(demo), f"{demo}: not a run", f"runs in it: {run}, {other}")


@pytest.mark.parametrize("find", [run_in, run_of, latest])
def test_a_folder_that_is_no_run_is_refused_with_the_runs_in_it(tmp_path, find):
    refused(lambda: find(tmp_path), f"{tmp_path}: not a run", "pass the folder that `train --out` wrote")
    run = draw_run(tmp_path / "coco", 1)
    refused(lambda: find(tmp_path), "not a run", f"runs in it: {run}")
    refused(lambda: find(tmp_path / "coca"), "no such run", f"did you mean '{run}'")


def test_a_run_without_a_checkpoint_is_a_run_that_can_be_resumed(tmp_path):
    run = draw_run(tmp_path / "run")
    assert run_in(run) == run
    refused(lambda: latest(run), f"{run}: has no checkpoint yet", f"`train --out {run} --resume`")


def test_a_checkpoint_that_was_copied_out_of_its_run_is_a_checkpoint_but_no_run(tmp_path):
    copied = draw_run(tmp_path / "run", 1).joinpath("step_00000001").rename(tmp_path / "best")
    assert latest(copied) == run_of(copied) == copied
    refused(lambda: run_in(copied), "not a run")
