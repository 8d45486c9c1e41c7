"""push and pull with a server that behaves like the Hugging Face Hub."""

import signal
import time

import pytest
import yaml
from caches import contents
from hub_server import READER, Hub, hub_server
from small_run import SmallRun, small_run

from data_cache.integrity import verify_files
from data_cache.reader import Cache
from experiments.sharing.manifest import MANIFEST

RUN, CACHE = "hf://me/coco-glm", "hf://datasets/me/coco"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


def test_run_and_cache_are_pushed_in_one_commit_each_and_pulled_whole(hub: Hub, made, tmp_path):
    results = hub.run(
        ("push", made.run, RUN, "--license", "cc-by-4.0", "--private"),
        ("push", made.cache, CACHE),
        ("pull", RUN, "--out", tmp_path / "run"),
        ("pull", CACHE, "--out", tmp_path / "cache.zarr"),
        ("push", made.run, RUN),
        ("push", made.run, RUN, "--overwrite"),
        ("push", made.cache, "hf://me/coco"),
        ("pull", "hf://me/coco", "--out", tmp_path / "no"),
        ("pull", f"{RUN}@main", "--out", tmp_path / "revision"),
        ("pull", RUN, "--out", tmp_path / "run"),
        home=tmp_path / "home",
    )
    assert [result.status for result in results] == [0, 0, 0, 0, 1, 0, 2, 1, 0, 1], results
    run, cache = hub.repositories["models/me/coco-glm"], hub.repositories["datasets/me/coco"]
    assert run.private
    assert not cache.private
    assert [len(each.commits) for each in (run, cache)] == [3, 2]
    assert {".gitattributes", "README.md", MANIFEST, "cache.zarr.zip"} == cache.files.keys()
    assert yaml.safe_load(run.files["README.md"].decode().split("---")[1])["license"] == "cc-by-4.0"
    assert verify_files(Cache(tmp_path / "cache.zarr"))[1] == []
    for name, data in contents(tmp_path / "run").items():
        assert run.files[name] == data
    assert "has been pushed there" in results[4].error
    assert "pass hf://datasets/me/coco" in results[6].error
    assert "no such repository (a cache is at hf://datasets/USER/NAME)" in results[7].error
    assert "exists already" in results[9].error


@pytest.mark.slow
def test_push_killed_before_its_commit_shows_nothing_and_does_not_upload_twice(hub: Hub, made, tmp_path):
    hub.commits_allowed.clear()
    process = hub.start(("push", made.run, RUN), home=tmp_path / "home")
    assert hub.before_commit.wait(120)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert hub.repositories["models/me/coco-glm"].files.keys() == {".gitattributes"}
    (uploaded,) = hub.uploads
    hub.drop_commits.set()
    hub.commits_allowed.set()
    time.sleep(0.2)  # the server drops the commit of the dead process
    hub.drop_commits.clear()
    pulled, pushed = hub.run(("pull", RUN, "--out", tmp_path / "run"), ("push", made.run, RUN), home=tmp_path / "home")
    assert "holds nothing that `push` published" in pulled.error
    assert pushed.status == 0, pushed
    assert hub.uploads == [uploaded]
    assert MANIFEST in hub.repositories["models/me/coco-glm"].files


def test_refusals_say_what_to_do_before_anything_heavy_is_imported(hub: Hub, made, tmp_path):
    commands = (("push", made.run, "hf://me/new"), ("pull", "hf://me/new", "--out", tmp_path / "x"))
    expected = {
        "no token": (("no Hugging Face token; set HF_TOKEN, or run `hf auth login`", "no such repository"), None, {}),
        "wrong token": (("the Hugging Face token is not valid",) * 2, "hf_wrong", {}),
        "reader": (("no permission; use a token with write access", "no such repository"), READER, {}),
        "unreachable": (("cannot be reached",) * 2, READER, {"HF_ENDPOINT": "http://127.0.0.1:9"}),
        "offline": (("HF_HUB_OFFLINE is set",) * 2, READER, {"HF_HUB_OFFLINE": "1"}),
    }
    for name, (messages, token, environment) in expected.items():
        results = hub.run(*commands, token=token, home=tmp_path / "home", **environment)
        for result, message in zip(results, messages, strict=True):
            assert message in result.error, name
            assert "torch" not in result.modules, name
    assert not hub.repositories


def test_private_is_refused_for_a_public_repository_and_foreign_files_are_kept(hub: Hub, made, tmp_path):
    hub.create("models/me/public", {"README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"MIT"})
    hub.create("models/me/other", {"weights.bin": b"1"})
    results = hub.run(
        ("push", made.run, "hf://me/public", "--private"),
        ("push", made.run, "hf://me/other", "--overwrite"),
        ("push", made.run, "hf://me/public"),
        home=tmp_path / "home",
    )
    assert "exists and is public" in results[0].error
    assert "contains other files (weights.bin)" in results[1].error
    assert results[2].status == 0
    files = hub.repositories["models/me/public"].files
    assert files["LICENSE"] == b"MIT"
    assert b"\nlicense: mit\n" in files["README.md"]
