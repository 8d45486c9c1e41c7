"""The protocol of a teacher: nothing outside `pipeline/teacher` uses more of one."""

import numpy as np
import pytest
import torch
from folders import precompute_config
from refusals import refused
from tiny_inputs import draw_blocks, tiny_clip

from benchmarks.feed import StandIn
from data_cache.layout import DEFAULT_MASKS
from data_cache.reader import Cache
from pipeline import encode_job
from pipeline.live import live_teacher
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.repair import repair
from pipeline.teacher import rebuild
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.protocol import Teacher
from pipeline.teacher.rebuild import rebuild_teacher

MEMBERS = {*Teacher.__annotations__, *(name for name in vars(Teacher) if not name.startswith("_"))}
CPU = torch.device("cpu")


class OnlyTheProtocol:
    """A CLIP of which only the members of the protocol can be used."""

    def __init__(self, *given, **options):
        self._clip = FrozenCLIP(*given, **options)

    def __getattr__(self, name):
        if name not in MEMBERS:
            raise AssertionError(f"{name} is not part of the protocol")
        return getattr(self._clip, name)


@pytest.fixture
def only_the_protocol(monkeypatch):
    encode_job.load_clip.cache_clear()
    monkeypatch.setattr(encode_job, "FrozenCLIP", OnlyTheProtocol)
    monkeypatch.setattr(rebuild, "FrozenCLIP", OnlyTheProtocol)
    yield
    encode_job.load_clip.cache_clear()


def test_clip_and_the_stand_in_of_the_benchmarks_are_teachers():
    assert isinstance(tiny_clip(), Teacher)
    assert isinstance(StandIn(100), Teacher)
    assert not isinstance(object(), Teacher)


@pytest.mark.usefixtures("only_the_protocol")
def test_every_stage_needs_nothing_but_the_protocol(tmp_path):
    root = draw_blocks(tmp_path / "own", 4)
    execute(plan(precompute_config(root, tmp_path / "own.zarr", shard=2, unseen="tree")))
    cache = Cache(tmp_path / "own.zarr")
    stored = cache.read("dense")
    live = live_teacher(cache, DEFAULT_MASKS, root, CPU)
    assert isinstance(live.clip, OnlyTheProtocol)
    found = live.features(np.arange(4), np.zeros(4, int))
    np.testing.assert_allclose(found.dense.astype(float), stored[:, 0].astype(float), atol=4e-3)
    next(file for file in (cache.path / "dense").rglob("*") if file.name == "0" and file.is_file()).unlink()
    assert repair(cache.path, root, CPU).features == [0]
    np.testing.assert_array_equal(Cache(cache.path).read("dense"), stored)


def test_a_teacher_is_rebuilt_from_its_fingerprint_alone():
    clip = tiny_clip(image_size=64, recipe="naclip", precision="bf16")
    rebuilt = rebuild_teacher(clip.fingerprint(), clip.origin, None, None, CPU)
    assert rebuilt.fingerprint() == clip.fingerprint()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rebuilt.encode(images).dense, clip.encode(images).dense)


def test_mean_and_std_of_a_rebuilt_teacher_are_those_of_the_fingerprint():
    clip = tiny_clip()
    fingerprint = clip.fingerprint() | {"mean": [0.5, 0.25, 0.5], "std": [0.25, 0.5, 0.25]}
    rebuilt = rebuild_teacher(fingerprint, clip.origin, None, None, CPU)
    assert (rebuilt.mean, rebuilt.std) == ((0.5, 0.25, 0.5), (0.25, 0.5, 0.25))


def test_a_teacher_of_equal_weights_with_other_features_is_refused():
    clip = tiny_clip()
    fingerprint = clip.fingerprint() | {"quick_gelu": True}
    refused(
        lambda: rebuild_teacher(fingerprint, clip.origin, None, None, CPU),
        "quick_gelu is False, and True in the cache",
    )
