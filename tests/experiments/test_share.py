"""push and pull: what arrives, what an interruption leaves, and what is not trusted."""

import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import textwrap
from pathlib import Path

import fsspec
import numpy as np
import pytest
import shapes
import typer
import yaml
from caches import contents
from command_line import in_a_process
from folders import make_cache
from PIL import Image
from small_run import SmallRun, small_run

import cli
from data_cache.errors import UserError
from data_cache.reader import Cache
from experiments.sharing import push_pull, remote
from experiments.sharing.config import PullConfig, PushConfig
from experiments.sharing.manifest import MANIFEST
from experiments.stages import silent
from trainer.checkpoint import load
from trainer.checkpoint_folders import latest
from trainer.config import TrainConfig, read_config
from trainer.loop import train
from trainer.metrics import Metrics


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("share"))


@pytest.fixture
def cached(made, tmp_path) -> Path:
    return shutil.copytree(made.cache, tmp_path / "source.zarr")


@pytest.fixture(autouse=True)
def _empty_memory():
    yield
    fsspec.filesystem("memory").store.clear()


def push(source: Path, url: str, **given: object) -> push_pull.Shared:
    return push_pull.push(PushConfig(source, url, **given), silent)


def pull(url: str, out: Path | None = None, **given: object) -> push_pull.Shared:
    return push_pull.pull(PullConfig(url, out, **given), silent)


def url_of(folder: Path) -> str:
    return f"file://{folder}"


# -- what arrives ----------------------------------------------------------------------------------------------


def test_pulled_cache_is_the_one_that_precompute_makes_without_dense_tokens(tmp_path):
    root = shapes.draw_shapes(tmp_path / "drawn", {"train": 5})
    given = {"unseen": "disc", "shard": 2, "views": 2}
    source, expected = (
        make_cache(root, tmp_path / f"{dense}.zarr", dense=dense, **given) for dense in ("int8", "none")
    )
    before = contents(source)
    push(source, url_of(tmp_path / "published"))
    assert contents(source) == before
    pull(url_of(tmp_path / "published"), tmp_path / "pulled.zarr")
    pulled, wanted = contents(tmp_path / "pulled.zarr"), contents(expected)
    assert pulled.keys() == wanted.keys()
    # only the recorded folders differ, and with them the hash of the metadata
    assert {name for name in pulled if pulled[name] != wanted[name]} == {"zarr.json"}
    attributes = [dict(Cache(path).attributes) for path in (tmp_path / "pulled.zarr", expected)]
    assert attributes[0]["fingerprint"] == attributes[1]["fingerprint"]
    assert attributes[0]["recorded"] == {**attributes[1]["recorded"], "root": None, "clip": None}


def test_pulled_cache_verifies_says_that_it_has_no_dense_tokens_and_trains_alike(made, cached, tmp_path, clipteacher):
    clipteacher.good("push", cached, url_of(tmp_path / "published"))
    clipteacher.good("pull", url_of(tmp_path / "published"), "--out", tmp_path / "pulled.zarr")
    assert "0 bad" in clipteacher.good("verify", tmp_path / "pulled.zarr").out
    assert "holds no dense tokens" in clipteacher("cluster", tmp_path / "pulled.zarr", "--name", "again").error
    weights = []
    for cache in (cached, tmp_path / "pulled.zarr"):
        config = TrainConfig(
            **{**vars(read_config(made.run / "config.json")), "cache": str(cache), "root": str(made.root)}
        )
        train(config, tmp_path / f"run_{cache.stem}")
        weights.append((latest(tmp_path / f"run_{cache.stem}") / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_pulled_run_is_the_same_student_and_names_no_folder_of_the_machine_it_was_made_on(made, tmp_path):
    push(made.run, url_of(tmp_path / "published"))
    for name, data in contents(tmp_path / "published").items():
        assert str(made.root.parent).encode() not in data, name
    pull(url_of(tmp_path / "published"), tmp_path / "pulled")
    ours, theirs = (load(path, "cpu") for path in (made.run, tmp_path / "pulled"))
    for (name, value), other in zip(
        ours.network.state_dict().items(), theirs.network.state_dict().values(), strict=True
    ):
        np.testing.assert_array_equal(value.numpy(), other.numpy(), err_msg=name)
    assert ours.split == theirs.split
    assert (tmp_path / "pulled/log.jsonl").read_bytes() == (made.run / "log.jsonl").read_bytes()
    assert not list((tmp_path / "pulled").rglob("resume.safetensors"))


def test_run_resumes_only_if_its_optimizer_state_was_pushed(made, tmp_path, clipteacher):
    for name, options in (("without", ()), ("with", ("--resume-state",))):
        clipteacher.good("push", made.run, url_of(tmp_path / name / "run"), *options)
        clipteacher.good("pull", url_of(tmp_path / name / "run"), "--out", tmp_path / f"run_{name}")
    resume = ("--resume", "--cache", made.cache, "--root", made.root)
    message = clipteacher("train", "--out", tmp_path / "run_without", *resume).error
    assert "pushed without its optimizer state; push the run with --resume-state" in message
    clipteacher.good("train", "--out", tmp_path / "run_with", *resume)
    assert "no optimizer state" in clipteacher("push", tmp_path / "run_without", "memory://x", "--resume-state").error


def test_named_checkpoint_is_pushed_with_the_settings_of_its_run(made, tmp_path):
    push(latest(made.run), "memory://named")
    assert pull("memory://named", tmp_path / "pulled").kind == "run"
    assert latest(tmp_path / "pulled").name == "step_00000003"


def test_cache_is_pushed_and_pulled_without_importing_torch(made, tmp_path):
    url, prelude = url_of(tmp_path / "published"), "import sys\nsys.modules['torch'] = None"
    for command in (("push", made.cache, url), ("pull", url, "--out", tmp_path / "pulled.zarr")):
        result = in_a_process(*command, prelude=prelude)
        assert result.returncode == 0, result.stderr


# -- the page --------------------------------------------------------------------------------------------------


def metadata(page: str) -> dict:
    return yaml.safe_load(page.split("---")[1])


def test_page_of_a_run_has_metrics_settings_and_no_license_that_nobody_stated(made, tmp_path, clipteacher):
    result = clipteacher.good("evaluate", made.run, "--dataset", "folder", "--root", made.root, "--json")
    (tmp_path / "result.json").write_text(result.out)
    clipteacher.good("push", made.run, url_of(tmp_path / "p/coco-glm"), "--result", tmp_path / "result.json")
    page = (tmp_path / "p/coco-glm/README.md").read_text()
    data = metadata(page)
    assert "license" not in data
    assert "no license is stated" in page
    assert data["library_name"] == "clipteacher"
    (entry,) = data["model-index"][0]["results"]
    assert entry["dataset"] == {"name": "folder", "type": "folder", "split": "val", "args": {"gamma": 1.5}}
    values = {metric["name"]: metric["value"] for metric in entry["metrics"]}
    assert values["mIoU(S)"] == round(100 * result.json["mIoU_S"], 2)
    assert values.keys() == {"mIoU", "pAcc", "mIoU(S)", "mIoU(U)", "hIoU"}
    assert "**Unseen classes (1)**: disc" in page
    assert json.loads((tmp_path / "p/coco-glm/evaluation.json").read_text())["split"] == "val"


def test_published_evaluation_is_that_on_the_training_dataset(made, tmp_path):
    run, url = shutil.copytree(made.run, tmp_path / "run"), url_of(tmp_path / "p/run")
    metrics = {**dict.fromkeys(Metrics.ALL_COLUMNS, 0.5), "gamma": 1.5, "per_class": {"wall": 0.5}, "unseen": []}
    for dataset, accuracy in {"ade150": 0.1, "folder": 0.2, "voc20": 0.3}.items():
        row = {"metrics": metrics | {"pAcc": accuracy}, "paper": {}, "departures": []}
        (run / f"{dataset}.json").write_text(json.dumps(row))
    push(run, url)
    evaluation = json.loads((tmp_path / "p/run/evaluation.json").read_text())
    assert (evaluation["dataset"], evaluation["pAcc"]) == ("folder", 0.2)


def test_license_comes_from_the_option_or_from_the_page_that_is_there(made, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: ours\n---\nmine\n")
    push(made.run, url_of(tmp_path))
    data = metadata((tmp_path / "README.md").read_text())
    assert (data["license"], data["license_name"]) == ("other", "ours")
    push(made.run, url_of(tmp_path), overwrite=True, license="cc-by-4.0", hub_dataset="me/coco")
    data = metadata((tmp_path / "README.md").read_text())
    assert (data["license"], data["datasets"]) == ("cc-by-4.0", ["me/coco"])
    assert "license_name" not in data
    push(made.run, url_of(tmp_path), overwrite=True)
    assert metadata((tmp_path / "README.md").read_text())["license"] == "cc-by-4.0"


@pytest.mark.parametrize(
    "text", ["---\n: [\n---", "---", "---\n- a\n---", "\0", "---\nlicense: [mit]\n---", "---\n\udcff"]
)
def test_page_that_cannot_be_read_states_no_license(made, tmp_path, text):
    (tmp_path / "README.md").write_bytes(os.fsencode(text))
    push(made.run, url_of(tmp_path))
    assert "license" not in metadata((tmp_path / "README.md").read_text())


def test_python_lines_of_the_page_run(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    push(made.run, url_of(tmp_path / "coco-glm"))
    pull(url_of(tmp_path / "coco-glm"))
    Image.open(next((made.root / "images").rglob("*.png"))).convert("RGB").save("photo.jpg")
    lines = (tmp_path / "coco-glm/README.md").read_text().split("In Python:")[1].split("Without")[0]
    exec(textwrap.dedent(lines))
    assert min(Image.open("overlay.png").size) >= 128


def test_commands_of_the_pages_parse(made, tmp_path):
    for source in (made.run, made.cache):
        push(source, url_of(tmp_path / source.stem))
        page = (tmp_path / source.stem / "README.md").read_text()
        lines = [line.strip() for line in page.splitlines() if line.startswith("    clipteacher ")]
        assert len(lines) >= 2
        for line in lines:
            name, *arguments = shlex.split(line)[1:]
            typer.main.get_command(cli.app).commands[name].make_context(name, arguments).close()


# -- what is already there -------------------------------------------------------------------------------------


def test_push_replaces_only_what_a_push_wrote_and_only_with_overwrite(made, tmp_path):
    target = tmp_path / "published"
    push(made.run, url_of(target))
    with pytest.raises(UserError, match="has been pushed there; pass --overwrite"):
        push(made.cache, url_of(target))
    push(made.cache, url_of(target), overwrite=True)
    assert {path.name for path in target.rglob("*") if path.is_file()} == {"README.md", MANIFEST, "cache.zarr.zip"}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"contains other files \(thesis.tex\)"):
            push(made.run, url_of(other), overwrite=overwrite)


def test_pull_replaces_only_a_run_or_a_cache_and_only_with_overwrite(made, cached, tmp_path):
    push(made.run, "memory://run")
    push(made.cache, "memory://cache")
    with pytest.raises(UserError, match="exists already; pass --overwrite"):
        pull("memory://cache", cached)
    pull("memory://cache", cached, overwrite=True)
    assert Cache(cached).layout.dense == "none"
    (tmp_path / "thesis").mkdir()
    for url in ("memory://run", "memory://cache"):
        with pytest.raises(UserError, match="not a"):
            pull(url, tmp_path / "thesis", overwrite=True)
    with pytest.raises(UserError, match="not a"):
        pull("memory://run", cached, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.zarr", "thesis"]


def test_default_paths_are_those_of_train_and_precompute(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    push(made.run, "memory://some/coco-glm")
    push(made.cache, "memory://some/coco.zarr")
    assert pull("memory://some/coco-glm").where.endswith("runs/coco-glm")
    assert pull("memory://some/coco.zarr").where.endswith("data_cache/coco.zarr")


# -- interruptions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [1, 2, 4, 6])
def test_interrupted_push_is_never_pulled_and_is_completed_by_rerunning_it(made, tmp_path, monkeypatch, files):
    writes = iter(range(files))
    write = remote.Folder._write

    def interrupted(self, name, content):
        if next(writes, None) is None:
            raise KeyboardInterrupt
        write(self, name, content)

    monkeypatch.setattr(remote.Folder, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        push(made.run, url_of(tmp_path / "published"))
    monkeypatch.setattr(remote.Folder, "_write", write)
    with pytest.raises(UserError, match="its push was interrupted"):
        pull(url_of(tmp_path / "published"), tmp_path / "pulled")
    push(made.run, url_of(tmp_path / "published"))
    pull(url_of(tmp_path / "published"), tmp_path / "pulled")


@pytest.mark.parametrize("source", ["run", "cache"])
def test_pull_killed_in_the_middle_leaves_nothing_that_looks_whole(made, tmp_path, source):
    push(getattr(made, source), url_of(tmp_path / "published"))
    out = tmp_path / "out/pulled"
    where = "received.check_received" if source == "run" else "received.verify_files"
    prelude = (
        "import os, signal\nfrom experiments.sharing import received\n"
        f"{where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = in_a_process("pull", url_of(tmp_path / "published"), "--out", out, prelude=prelude)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert any(out.parent.glob("*.partial")), "it was killed before anything was downloaded"
    pull(url_of(tmp_path / "published"), out)
    assert [path.name for path in out.parent.iterdir()] == ["pulled"]


def test_failed_pull_leaves_nothing(made, tmp_path):
    push(made.cache, url_of(tmp_path / "published"))
    archive = tmp_path / "published/cache.zarr.zip"
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    with pytest.raises(UserError, match="does not match its hash"):
        pull(url_of(tmp_path / "published"), tmp_path / "out/pulled.zarr")
    assert not list((tmp_path / "out").iterdir())


# -- what is not trusted ---------------------------------------------------------------------------------------


def rewrite(folder: Path, change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def refused(folder: Path, tmp_path: Path) -> str:
    with pytest.raises(UserError) as error:
        pull(url_of(folder), tmp_path / "out/pulled")
    assert not list((tmp_path / "out").glob("*"))
    (line,) = error.value.lines
    return line


@pytest.mark.parametrize(
    "name",
    [
        *("../evil", "/etc/evil", "step_00000003/../../evil", "model.pkl", "step_00000003/resume.pt", "log.jsonl/x"),
        *("a\nb", "CON", "step_3/model.json", ".bashrc", "train.lock", "README.md", MANIFEST),
    ],
)
def test_manifest_with_another_file_than_a_run_has_is_refused(made, tmp_path, name):
    push(made.run, url_of(tmp_path / "published"))
    rewrite(tmp_path / "published", lambda manifest: manifest["files"].update({name: {"size": 0, "sha256": "0" * 64}}))
    assert "a run has no file" in refused(tmp_path / "published", tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(files=None),
        lambda manifest: manifest.update(files=[]),
        lambda manifest: manifest.update(files={}),
        lambda manifest: manifest.update(kind="notebook"),
        lambda manifest: manifest.update(kind="cache"),
        lambda manifest: manifest.update(format="other"),
        lambda manifest: manifest.update(version=99),
        lambda manifest: manifest.update(complete="yes"),
        lambda manifest: manifest["files"].pop("config.json"),
        lambda manifest: manifest["files"].pop("step_00000003/model.json"),
        lambda manifest: manifest["files"]["config.json"].update(size=-1),
        lambda manifest: manifest["files"]["config.json"].update(size=True),
        lambda manifest: manifest["files"]["config.json"].update(size=10**15),
        lambda manifest: manifest["files"]["config.json"].update(sha256="x"),
        lambda manifest: manifest["files"]["config.json"].update(sha256="0" * 64),
        lambda manifest: manifest["files"].update(
            {"step_00000004/model.json": manifest["files"]["step_00000003/model.json"]}
        ),
    ],
)
def test_manifest_that_contradicts_itself_or_the_files_is_refused(made, tmp_path, change):
    push(made.run, url_of(tmp_path / "published"))
    rewrite(tmp_path / "published", change)
    refused(tmp_path / "published", tmp_path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"[" * 10**5, b"\xff\xfe", b'{"format": "clipteacher-share"}']
)
def test_manifest_that_is_not_one_is_refused(tmp_path, text):
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / MANIFEST).write_bytes(text)
    refused(tmp_path / "published", tmp_path)


def test_symlinks_pipes_and_folders_are_not_followed(made, tmp_path):
    push(made.run, url_of(tmp_path / "published"))
    config = tmp_path / "published/config.json"
    config.rename(tmp_path / "secret")
    config.symlink_to(tmp_path / "secret")
    assert "config.json is missing" in refused(tmp_path / "published", tmp_path)
    config.unlink()
    os.mkfifo(config)
    assert "config.json is missing" in refused(tmp_path / "published", tmp_path)
    config.unlink()
    config.mkdir()
    assert "config.json is missing" in refused(tmp_path / "published", tmp_path)


def test_weights_that_are_no_safetensors_are_refused_even_with_a_matching_hash(made, tmp_path):
    push(made.run, url_of(tmp_path / "published"))
    weights = tmp_path / "published/step_00000003/model.safetensors"
    weights.write_bytes(b"\x80\x04cos\nsystem\n(S'touch evil'\ntR.")
    entry = {"size": weights.stat().st_size, "sha256": hashlib.sha256(weights.read_bytes()).hexdigest()}
    rewrite(
        tmp_path / "published", lambda manifest: manifest["files"].update({"step_00000003/model.safetensors": entry})
    )
    assert "damaged or foreign checkpoint" in refused(tmp_path / "published", tmp_path)


# -- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pull", "user/coco-glm"), "not a URL; for a folder pass file:///PATH"),
        (("pull", "filee:///x"), "unknown kind of URL; did you mean 'file'"),
        (("pull", "hf://coco-glm"), "must be hf://USER/NAME"),
        (("pull", "hf://me/a/b"), "must be hf://USER/NAME"),
        (("pull", "file:///nowhere/at/all"), "holds nothing that `push` published"),
        (("push", "nowhere", "memory://x"), "nowhere: no such run or cache"),
        (("push", "tests", "memory://x"), "not a run"),
        (("push", "tests", "memory://x", "--private"), "--private: memory://x is not a Hugging Face repository"),
        (("push", "tests", "memory://x", "--license", "MY OWN"), "--license 'MY OWN': must be an identifier"),
        (("push", "tests", "memory://x", "--hub-dataset", "coco"), "--hub-dataset 'coco': must be USER/NAME"),
        (("push", "tests", "hf://datasets/me/x"), "a run belongs in another kind of repository; pass hf://me/x"),
    ],
)
def test_mistakes_are_explained_in_one_line(clipteacher, arguments, message):
    assert message in clipteacher(*arguments).error


def test_missing_package_of_a_file_system_is_named(clipteacher, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "s3fs" in clipteacher("pull", "s3://bucket/x").error


def test_disk_that_is_too_small_is_noticed_before_anything_is_written(made, tmp_path, monkeypatch):
    push(made.cache, "memory://cache")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        UserError, match=r"pulled.zarr: the cache needs about 0\.\d\d GiB, but 0\.00 GiB are free; choose another --out"
    ):
        pull("memory://cache", tmp_path / "out/pulled.zarr")
    with pytest.raises(UserError, match=r"packing the cache needs about .*; set TMPDIR to a folder on a larger disk"):
        push(made.cache, "memory://other")
    assert not list((tmp_path / "out").iterdir())
