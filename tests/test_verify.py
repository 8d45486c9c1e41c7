"""verify: every file is read again, and the live teacher is asked once more."""

import numpy as np
import pytest
from command_line import TINY, pictures

from data_cache.store import Cache
from pipeline.live import LiveTeacher


@pytest.fixture
def cache(clipteacher, drawn, tmp_path):
    path = tmp_path / "c.zarr"
    clipteacher.good("precompute", *pictures(drawn), *TINY, "--cache", path, "--shard", 4, "--views", 3)
    return path


def test_a_sound_cache_is_called_sound_and_the_live_teacher_says_the_same(clipteacher, cache):
    told = clipteacher.good("verify", cache, "--live", 10, "--device", "cpu", "--json").json
    assert told["bad"] == []
    assert told["files"] > 10
    live = told["live"]
    assert live["views"] == 10
    assert live["cls_cosine_min"] > 0.9999
    assert live["dense_cosine_min"] > 0.999
    assert live["ignored_equal"] == 1
    assert live["masks_rand_index"] > 0.9
    assert "0 bad" in clipteacher.good("verify", cache).out


def test_a_cache_of_other_features_is_found_out(clipteacher, cache):
    group = Cache(cache, mode="r+").group
    shard = group["cls"][:4]
    group["cls"][:4] = shard[::-1]
    told = clipteacher("verify", cache, "--json")
    assert told.status == 1
    assert "cls/c/0/0/0: damaged" in told.out


@pytest.mark.parametrize("part", ["cls", "dense", "masks/default/label", "text", "image/id", "view/box"])
def test_a_flipped_bit_and_a_lost_file_are_named(clipteacher, cache, part):
    files = sorted(f for f in (cache / part).rglob("*") if f.is_file() and f.name != "zarr.json")
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 4
    files[0].write_bytes(bytes(content))
    files[-1].unlink() if len(files) > 1 else None
    told = clipteacher("verify", cache)
    assert told.status == 1
    assert f"{files[0]}: damaged" in told.out
    if len(files) > 1:
        assert f"{files[-1]}: missing" in told.out
    assert "delete what is damaged and make it again" in told.error


def test_int8_and_no_dense_tokens_are_verified_too(clipteacher, drawn, tmp_path):
    for dense in ("int8", "none"):
        path = tmp_path / f"{dense}.zarr"
        clipteacher.good("precompute", *pictures(drawn), *TINY, "--cache", path, "--dense", dense)
        live = clipteacher.good("verify", path, "--live", 4, "--device", "cpu", "--json").json["live"]
        assert (live["dense_cosine_mean"] is None) == (dense == "none")
        if dense == "int8":
            assert live["dense_cosine_mean"] > 0.999
            assert np.isfinite(live["dense_cosine_min"])


def test_views_are_drawn_without_repetition_by_a_seed_and_at_most_all_of_them(clipteacher, cache, monkeypatch):
    asked, ask = [], LiveTeacher.ask

    def told(self, image, view):
        asked.extend(zip(image.tolist(), view.tolist(), strict=True))
        return ask(self, image, view)

    monkeypatch.setattr(LiveTeacher, "ask", told)

    def drawn_views(*options):
        asked.clear()
        told = clipteacher.good("verify", cache, *options, "--device", "cpu", "--json").json["live"]
        assert told["views"] == len(asked) == len(set(asked))
        return set(asked)

    assert drawn_views("--live", 99) == {(image, view) for image in range(6) for view in range(3)}
    assert drawn_views("--live", 4) == drawn_views("--live", 4, "--seed", 0) != drawn_views("--live", 4, "--seed", 1)


def test_shards_that_are_not_done_and_a_damaged_journal_are_findings_beside_all_others(clipteacher, cache):
    Cache(cache, mode="r+").group["masks/default/journal"][1] = ""
    told = clipteacher("verify", cache)
    assert told.status == 1
    assert "1 of 2 shards are not done" in told.out
    journal = next(f for f in (cache / "journal/c").rglob("*") if f.is_file())
    journal.write_bytes(b"rubbish")
    lost = next(f for f in (cache / "masks/default/label/c").rglob("*") if f.is_file())
    lost.unlink()
    told = clipteacher("verify", cache)
    assert "damaged journal record" in told.out
    assert f"{lost}: missing" in told.out
