"""`verify`: every file is read again, and random views are encoded again by the live teacher."""

import numpy as np
import pytest
from command_line import TINY, folder_options
from tower_configs import write_config

from data_cache.reader import Cache
from data_cache.writer import CacheWriter
from pipeline.live import LiveTeacher
from pipeline.teacher.recipes import OUTPUT, RECIPES


@pytest.fixture
def cache(clipteacher, drawn, tmp_path):
    path = tmp_path / "c.zarr"
    clipteacher.good("precompute", *folder_options(drawn), *TINY, "--cache", path, "--shard", 4, "--views", 3)
    return path


def test_intact_cache_passes_and_matches_the_live_teacher(clipteacher, cache):
    result = clipteacher.good("verify", cache, "--live", 10, "--device", "cpu", "--json").json
    assert result["bad"] == []
    assert result["files"] > 10
    live = result["live"]
    assert live["views"] == 10
    assert live["cls_cosine_min"] > 0.9999
    assert live["dense_cosine_min"] > 0.999
    assert live["ignored_equal"] == 1
    assert live["masks_rand_index"] > 0.9
    assert "0 bad" in clipteacher.good("verify", cache).out


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_every_command_rebuilds_the_teacher_with_the_recipe_of_the_cache(clipteacher, drawn, tmp_path, recipe):
    paths = {name: tmp_path / f"{name}.zarr" for name in (recipe, OUTPUT)}
    for name, path in paths.items():
        given = ("--cache", path, "--shard", 4, "--dense-recipe", name)
        clipteacher.good("precompute", *folder_options(drawn), *TINY, *given)
    before = Cache(paths[recipe]).read("dense")
    assert not np.array_equal(before, Cache(paths[OUTPUT]).read("dense"))
    cls = (Cache(path).read("cls") for path in paths.values())
    np.testing.assert_allclose(*cls, rtol=1e-3, atol=1e-4)  # up to rounding
    live = clipteacher.good("verify", paths[recipe], "--live", 4, "--device", "cpu", "--json").json["live"]
    assert live["dense_cosine_min"] > 0.999
    next(file for file in (paths[recipe] / "dense").rglob("*") if file.name == "0" and file.is_file()).unlink()
    clipteacher.good("verify", paths[recipe], "--repair", "--device", "cpu")
    np.testing.assert_array_equal(Cache(paths[recipe]).read("dense"), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("EVA02-B-16", 64),
        ("ViT-B-32-SigLIP2-256", 96),
        ("PE-Core-T-16-384", 64),
        ("MobileCLIP2-B", 64),
        ("MobileCLIP2-S0", 96),
    ],
)
def test_a_cache_of_a_tower_from_timm_matches_the_live_teacher(clipteacher, drawn, tmp_path, name, size):
    clip = ("--clip", write_config(tmp_path, name), "--clip-weights", "random", "--image-size", size)
    path = tmp_path / "towers.zarr"
    clipteacher.good("precompute", *folder_options(drawn), *clip, "--device", "cpu", "--cache", path, "--limit", 2)
    cache = Cache(path)
    assert set(cache.read("image/status")) == {"ok"}
    assert np.isfinite(cache.read("dense")).all()
    live = clipteacher.good("verify", path, "--live", 2, "--device", "cpu", "--json").json["live"]
    assert live["cls_cosine_min"] > 0.9999
    assert live["dense_cosine_min"] > 0.9999


def test_a_recipe_of_a_newer_version_is_refused(clipteacher, cache, monkeypatch):
    monkeypatch.setattr("pipeline.teacher.rebuild.RECIPES", ())
    result = clipteacher("verify", cache, "--live", 2, "--device", "cpu")
    assert result.status == 1
    assert "dense tokens by output, which this version lacks" in result.error


def test_overwritten_features_are_detected(clipteacher, cache):
    group = CacheWriter(cache).group
    shard = group["cls"][:4]
    group["cls"][:4] = shard[::-1]
    result = clipteacher("verify", cache, "--json")
    assert result.status == 1
    assert "cls/c/0/0/0: damaged" in result.out


@pytest.mark.parametrize("part", ["cls", "dense", "masks/default/label", "text", "image/id", "view/box"])
def test_flipped_bits_and_missing_files_are_listed(clipteacher, cache, part):
    files = sorted(f for f in (cache / part).rglob("*") if f.is_file() and f.name != "zarr.json")
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 4
    files[0].write_bytes(bytes(content))
    files[-1].unlink() if len(files) > 1 else None
    result = clipteacher("verify", cache)
    assert result.status == 1
    assert f"{files[0]}: damaged" in result.out
    if len(files) > 1:
        assert f"{files[-1]}: missing" in result.out
    assert "--repair recomputes damaged shards" in result.error


def test_caches_with_int8_or_no_dense_tokens_are_verified(clipteacher, drawn, tmp_path):
    for dense in ("int8", "none"):
        path = tmp_path / f"{dense}.zarr"
        clipteacher.good("precompute", *folder_options(drawn), *TINY, "--cache", path, "--dense", dense)
        live = clipteacher.good("verify", path, "--live", 4, "--device", "cpu", "--json").json["live"]
        assert (live["dense_cosine_mean"] is None) == (dense == "none")
        if dense == "int8":
            assert live["dense_cosine_mean"] > 0.999
            assert np.isfinite(live["dense_cosine_min"])


def test_random_views_are_distinct_and_seeded(clipteacher, cache, monkeypatch):
    encoded, features = [], LiveTeacher.features

    def recorded(self, image, view):
        encoded.extend(zip(image.tolist(), view.tolist(), strict=True))
        return features(self, image, view)

    monkeypatch.setattr(LiveTeacher, "features", recorded)

    def drawn_views(*options):
        encoded.clear()
        result = clipteacher.good("verify", cache, *options, "--device", "cpu", "--json").json["live"]
        assert result["views"] == len(encoded) == len(set(encoded))
        return set(encoded)

    assert drawn_views("--live", 99) == {(image, view) for image in range(6) for view in range(3)}
    assert drawn_views("--live", 4) == drawn_views("--live", 4, "--seed", 0) != drawn_views("--live", 4, "--seed", 1)


def test_unfinished_shards_and_a_damaged_journal_are_findings(clipteacher, cache):
    CacheWriter(cache).group["masks/default/journal"][1] = ""
    result = clipteacher("verify", cache)
    assert result.status == 1
    assert "1 of 2 shards are not done" in result.out
    journal = next(f for f in (cache / "journal/c").rglob("*") if f.is_file())
    journal.write_bytes(b"rubbish")
    lost = next(f for f in (cache / "masks/default/label/c").rglob("*") if f.is_file())
    lost.unlink()
    result = clipteacher("verify", cache)
    assert "damaged journal record" in result.out
    assert f"{lost}: missing" in result.out


# -- repair ---------------------------------------------------------------------------------------------------------


def flip_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(bytes(content))


def chunks(cache, part):
    return sorted(f for f in (cache / part / "c").rglob("*") if f.is_file())


def contents(cache):
    return {f.relative_to(cache): f.read_bytes() for f in cache.rglob("*") if f.is_file()}


FEATURE_SHARDS, FINE_SHARDS = {"features": [1], "masks": {}}, {"features": [], "masks": {"fine": [1]}}
FLIPPED = ("cls", "dense", "view/box", "image/status", "image/content_hash", "masks/default/label")


@pytest.mark.parametrize(
    ("part", "damage", "repaired"),
    [
        *((part, "flipped", FEATURE_SHARDS) for part in (*FLIPPED, "journal", "masks/default/journal")),
        *((part, "flipped", FINE_SHARDS) for part in ("masks/fine/label", "masks/fine/journal")),
        *(("cls", "lost", FEATURE_SHARDS), ("dense", "emptied", FEATURE_SHARDS)),
        *(("masks/fine/label", "lost", FINE_SHARDS), ("journal", "emptied", FEATURE_SHARDS)),
    ],
)
def test_repair_recomputes_only_damaged_shards(clipteacher, cache, part, damage, repaired):
    clipteacher.good("cluster", cache, "--name", "fine", "--threshold", 0.9)
    before, file = contents(cache), chunks(cache, part)[-1]
    flip_bit(file) if damage == "flipped" else file.unlink() if damage == "lost" else file.write_bytes(b"")
    untouched = {f: f.stat().st_mtime_ns for f in chunks(cache, "cls") if "/c/0/" in f.as_posix()}
    assert clipteacher("verify", cache).status == 1
    result = clipteacher.good("verify", cache, "--repair", "--device", "cpu", "--json").json
    assert result["bad"] == []
    assert {name: result["repaired"][name] for name in repaired} == repaired
    assert result["repaired"]["same"] == (0 if part.endswith("journal") else 1)
    assert contents(cache) == before
    assert untouched == {f: f.stat().st_mtime_ns for f in untouched}


def test_intact_cache_is_not_repaired(clipteacher, cache):
    before = {f: f.stat().st_mtime_ns for f in cache.rglob("*")}
    assert clipteacher.good("verify", cache, "--repair", "--json").json["repaired"] is None
    assert before == {f: f.stat().st_mtime_ns for f in cache.rglob("*")}


@pytest.mark.parametrize("part", ["image/id", "text/zegclip15/features"])
def test_damaged_ids_and_texts_are_reported_as_unrepairable(clipteacher, cache, part):
    flip_bit(chunks(cache, part)[0])
    assert "--overwrite" in clipteacher("verify", cache, "--repair", "--device", "cpu").error


def test_repair_refuses_changed_images(clipteacher, cache, drawn):
    flip_bit(chunks(cache, "cls")[-1])
    images = sorted((drawn / "images/train").iterdir())
    images[-1].write_bytes(images[0].read_bytes())
    error = clipteacher("verify", cache, "--repair", "--device", "cpu").error
    assert f"{images[-1]}: the image or its label map changed" in error
