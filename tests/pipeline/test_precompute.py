"""Stage 1 as a whole: plans write nothing, and a resumed run equals an uninterrupted one."""

import pickle
import shutil
from collections import namedtuple
from dataclasses import replace
from threading import Event

import numpy as np
import pytest
import torch
import zarr
from folders import precompute_config
from refusals import refused
from tiny_inputs import CLASSES, draw_blocks, tiny_clip

from data_cache.datasets import open_dataset
from data_cache.errors import UsageError
from data_cache.journal import Journal
from data_cache.layout import DEFAULT_MASKS, Layout
from data_cache.reader import Cache
from data_cache.splits import Split
from pipeline.encode import Encoder
from pipeline.encode_job import EncodeJob
from pipeline.masks.masker import Masker
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.teacher.prompts import Prompts

IMAGES, SHARD, SHARDS, TRUNCATED = 10, 3, 4, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return draw_blocks(tmp_path_factory.mktemp("own"), IMAGES, truncated={TRUNCATED})


@pytest.fixture
def settings(root, tmp_path):
    return precompute_config(root, tmp_path / "out/new.zarr", shard=SHARD, unseen="tree")


@pytest.fixture(scope="module")
def progress():
    return []


@pytest.fixture(scope="module")
def done(root, tmp_path_factory, progress):
    """Settings and summary of an uninterrupted run."""
    cache = tmp_path_factory.mktemp("done") / "own.zarr"
    settings = precompute_config(root, cache, shard=SHARD, unseen="tree")
    return settings, execute(plan(settings), progress.append)


def tree(folder):
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in sorted(folder.rglob("*"))}


def arrays(cache):
    nodes = zarr.open_group(cache, mode="r").members(max_depth=None)
    return {name: node[:] for name, node in nodes if isinstance(node, zarr.Array)}


def assert_same_arrays(one, other):
    a, b = arrays(one), arrays(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def record_shards(monkeypatch):
    """The numbers of the shards that are run."""
    numbers, run = [], EncodeJob.run

    def counted(job, shard, progress):
        numbers.append(shard)
        return run(job, shard, progress)

    monkeypatch.setattr(EncodeJob, "run", counted)
    return numbers


# -- uninterrupted runs --------------------------------------------------------------------------------------------


def test_plan_writes_nothing(settings, root, tmp_path):
    before = tree(tmp_path), tree(root)
    work = plan(settings)
    assert (tree(tmp_path), tree(root)) == before
    assert work.shards == SHARDS
    assert work.images == IMAGES
    assert work.bytes == {"cls": IMAGES * 64 * 2, "dense": IMAGES * 64 * 64 * 2, "masks": IMAGES * 64}


def test_cache_holds_the_encoders_shards(done, root):
    layout = Layout(IMAGES, 1, 64, (8, 8), SHARD, "float16")
    masker = Masker(Split(CLASSES, ("tree",)), (8, 8))
    encoder = Encoder(tiny_clip(), open_dataset("folder", root, "train"), masker, layout)
    stored = arrays(done[0].cache)
    for number in range(SHARDS):
        with encoder.shard(number) as expected:
            pass
        span = slice(number * SHARD, (number + 1) * SHARD)
        names = {"image/size": "size", "view/box": "box", "view/flip": "flip", "cls": "cls", "dense": "dense"}
        names |= {f"image/{name}": name for name in ("status", "content_hash", "label_hash")}
        names |= {f"masks/{DEFAULT_MASKS}/{name}": name for name in ("label", "count")}
        for array, field in names.items():
            np.testing.assert_array_equal(stored[array][span], getattr(expected, field), err_msg=array)
    assert stored["image/id"].tolist() == [f"images/{index:02}.png" for index in range(IMAGES)]
    assert stored["image/path"].tolist() == stored["image/id"].tolist()


def test_cache_holds_the_text_features_of_all_classes(done):
    texts = Cache(done[0].cache).texts()
    assert (texts.name, texts.classes, texts.templates) == ("zegclip15", CLASSES, Prompts("zegclip15").templates)
    np.testing.assert_array_equal(texts.features, tiny_clip().encode_text(CLASSES, Prompts("zegclip15").templates))


def test_summary_lists_failed_images_with_reasons(done):
    _, summary = done
    assert (summary.images, summary.encoded) == (IMAGES, IMAGES)
    ((name, reason),) = summary.failures
    assert name == f"images/{TRUNCATED:02}.png"
    assert name in reason
    assert {"decode", "encode", "cluster", "write"} <= summary.stages.keys()


def test_progress_adds_up_to_all_images(done, progress):
    assert sum(progress) == IMAGES


def test_second_run_changes_nothing(done, monkeypatch):
    settings, summary = done
    before, ran = tree(settings.cache), record_shards(monkeypatch)
    work = plan(settings)
    assert (work.shards, work.images, sum(work.bytes.values())) == (0, 0, 0)
    again = execute(work)
    assert (again.encoded, again.images, again.failures) == (0, IMAGES, summary.failures)
    assert (tree(settings.cache), ran) == (before, [])


# -- interrupted runs ----------------------------------------------------------------------------------------------


def test_resumed_run_equals_an_uninterrupted_one(done, settings, monkeypatch):
    ran, run, finished, both = record_shards(monkeypatch), EncodeJob.run, [], Event()

    def dying(job, shard, progress):
        if shard > 1:
            assert both.wait(timeout=60)  # the error cancels shards that are running
            raise RuntimeError("power cut")
        report = run(job, shard, progress)
        finished.append(shard)
        if len(finished) == 2:
            both.set()
        return report

    with monkeypatch.context() as patch:
        patch.setattr(EncodeJob, "run", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            execute(plan(settings))
    assert sorted(ran) == [0, 1]
    ran.clear()
    work = plan(settings)
    assert (work.shards, work.images) == (2, 4)
    assert execute(work).encoded == 4
    assert sorted(ran) == [2, 3]
    assert_same_arrays(settings.cache, done[0].cache)


def test_shard_without_a_journal_record_is_recomputed(done, settings, monkeypatch):
    commit, cut, written = Journal.commit, [], []

    def torn(journal, shard, *rest):
        is_first_record = journal._array.path == "masks/default/journal"
        if is_first_record and written:  # of the second shard to be written, which may be any
            cut.append(shard)
            array = journal._root / f"cls/c/{shard}/0/0"
            assert array.is_file()  # completely written
            array.write_bytes(array.read_bytes()[:50])  # cut in half
            (array.parent / "new.partial").write_bytes(b"half")
            raise RuntimeError("power cut")
        written.extend([shard] * is_first_record)
        return commit(journal, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "commit", torn)
        with pytest.raises(RuntimeError, match="power cut"):
            execute(plan(settings))
    ran = record_shards(monkeypatch)
    pending = Cache(settings.cache).pending_shards(DEFAULT_MASKS)
    assert set(cut) <= set(pending)
    assert written
    assert not set(written) & set(pending)
    execute(plan(settings))
    assert sorted(ran) == pending
    assert_same_arrays(settings.cache, done[0].cache)
    assert not list(settings.cache.rglob("*.partial"))


# -- options -------------------------------------------------------------------------------------------------------


def test_dense_none_stores_no_dense_array_and_the_same_rest(done, settings):
    bare = replace(settings, dense="none")
    work = plan(bare)
    assert work.bytes["dense"] == 0
    execute(work)
    there, full = arrays(bare.cache), arrays(done[0].cache)
    assert there.keys() == full.keys() - {"dense"}
    assert not (bare.cache / "dense").exists()
    for name in there.keys() - {"journal"}:  # whose records list the files of dense
        np.testing.assert_array_equal(there[name], full[name], err_msg=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_size": 64}, ["clip.image_size: 128 there, 64 here"]),
        ({"precision": "bf16"}, ["clip.precision: fp32 there, bf16 here"]),
        ({"dense_recipe": "sclip"}, ["clip.dense_recipe: output there, sclip here"]),
        ({"dense": "none"}, ["dense: float16 there, none here"]),
        ({"shard": 5}, ["shard: 3 there, 5 here"]),
        ({"limit": 6}, ["4 missing (images/06.png, images/07.png, images/08.png and 1 more)", "restore them"]),
        ({"unseen": "sky"}, ["masks.unseen: ['tree'] there, ['sky'] here"]),
        ({"unseen": "sky", "shard": 5}, ["masks.unseen", "shard: 3 there, 5 here"]),
    ],
)
def test_cache_with_other_settings_is_refused_with_the_difference(done, change, words):
    settings, _ = done
    before = tree(settings.cache)
    refused(lambda: plan(replace(settings, **change)), settings.cache, "--cache", *words)
    assert tree(settings.cache) == before


def test_other_weights_of_the_same_name_are_refused(done, tmp_path):
    state = tiny_clip().model.state_dict()
    state["visual.proj"][0, 0] += 1
    torch.save(state, tmp_path / "w.pt")
    other = replace(done[0], clip_weights=str(tmp_path / "w.pt"))
    refused(lambda: plan(other), "clip.weights_sha256")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shard": 0}, ["--shard 0"]),
        ({"dense": "float8"}, ["--dense float8", "none"]),
        ({"kmeans": "magic"}, ["--kmeans magic"]),
        ({"precision": "fp8"}, ["--precision fp8"]),
        ({"device": "abacus"}, ["--device abacus"]),
        ({"unseen": "unicorn"}, ["--unseen", "unicorn"]),
        ({"unseen": None}, ["--unseen"]),
        ({"image_size": 100}, ["--image-size 100"]),
    ],
)
def test_invalid_option_is_refused_before_anything_is_written(settings, tmp_path, change, words):
    refused(lambda: plan(replace(settings, **change)), *words, kind=UsageError)
    assert tree(tmp_path) == {}


def test_pickled_job_contains_no_model(done):
    job = plan(done[0]).job
    model = job.encoder.clip
    unpickled = pickle.loads(pickle.dumps(job))
    assert (unpickled.layout, unpickled.masker, unpickled.dataset.ids) == (job.layout, job.masker, job.dataset.ids)
    assert unpickled.encoder.clip is model  # built once per process


# -- disks and images ----------------------------------------------------------------------------------------------


def full_disk(monkeypatch, free):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - free, free))


def test_too_little_disk_space_is_refused_before_anything_is_written(settings, tmp_path, monkeypatch):
    need = sum(plan(settings).bytes.values())
    full_disk(monkeypatch, need - 1)
    refused(lambda: plan(settings), settings.cache, "GiB", "--dense none", "--cache")
    assert "--dense" not in refused(lambda: full_disk(monkeypatch, 100) or plan(replace(settings, dense="none")))
    assert tree(tmp_path) == {}
    full_disk(monkeypatch, need)
    assert plan(settings).images == IMAGES


def test_finished_cache_needs_no_disk_space(done, monkeypatch):
    full_disk(monkeypatch, 0)
    assert plan(done[0]).shards == 0


def test_dataset_without_readable_images_is_refused(settings, tmp_path):
    bad = draw_blocks(tmp_path / "bad", 6, truncated=range(6))
    before = tree(tmp_path)
    refused(lambda: plan(replace(settings, root=bad)), "00.png")
    assert tree(tmp_path) == before


def test_folder_that_is_not_a_cache_is_refused(settings):
    settings.cache.mkdir(parents=True)
    (settings.cache / "thesis.txt").write_text("precious")
    refused(lambda: plan(settings), settings.cache)
    assert (settings.cache / "thesis.txt").read_text() == "precious"


def test_outdated_plan_rewrites_no_finished_shard(tmp_path, monkeypatch):
    root = draw_blocks(tmp_path / "data", 4)
    settings = precompute_config(root, tmp_path / "c.zarr", shard=2, unseen="tree")
    execute(plan(settings))
    (tmp_path / "c.zarr/journal/c/1").unlink()
    first, second = plan(settings), plan(settings)
    assert first.shards == second.shards == 1
    execute(first)
    monkeypatch.setattr(EncodeJob, "run", lambda *_: pytest.fail("a finished shard was written again"))
    execute(second)
