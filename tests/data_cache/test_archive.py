"""A cache as a zip file without dense tokens, and zip files of untrusted origin."""

import io
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from caches import complete, contents, create, shard

from data_cache.archive import pack, unpack
from data_cache.errors import UserError
from data_cache.integrity import verify_files
from data_cache.layout import Layout
from data_cache.reader import Cache


def repacked(path: Path, target: Path) -> Cache:
    pack(Cache(path), target.with_suffix(".zip"))
    target.mkdir()
    with target.with_suffix(".zip").open("rb") as file:
        unpack(file, target)
    return Cache(target)


def test_only_dense_tokens_are_left_out_and_all_other_arrays_keep_their_bytes(tmp_path):
    complete(tmp_path / "a.zarr")
    before = contents(tmp_path / "a.zarr")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "a.zarr").rglob("*")}
    cache = repacked(tmp_path / "a.zarr", tmp_path / "b.zarr")
    after = contents(tmp_path / "b.zarr")
    assert {name for name in before if not name.startswith("dense")} == after.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"zarr.json", "journal/c/0", "journal/c/1", "journal/c/2"}
    assert cache.layout.dense == cache.fingerprint["dense"] == "none"
    assert verify_files(cache)[1] == []
    with pytest.raises(UserError, match="holds no dense tokens"):
        cache.check_dense()
    assert contents(tmp_path / "a.zarr") == before, "the source was touched"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a.zarr").rglob("*")} == times


def test_same_cache_gives_the_same_zip_file(tmp_path):
    complete(tmp_path / "a.zarr")
    for name in ("1.zip", "2.zip"):
        pack(Cache(tmp_path / "a.zarr"), tmp_path / name)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()


def test_zarr_opens_the_zip_file(tmp_path):
    cache = complete(tmp_path / "a.zarr")
    pack(cache, tmp_path / "a.zip")
    with zarr.storage.ZipStore(tmp_path / "a.zip", mode="r") as store:
        group = zarr.open_group(store, mode="r")
        np.testing.assert_array_equal(group["cls"][:], cache.read("cls"))
        assert "dense" not in group


def test_folders_of_this_machine_are_left_out(tmp_path):
    cache = complete(tmp_path / "a.zarr")
    assert cache.attributes["recorded"]["root"] == "somewhere"
    pack(cache, tmp_path / "a.zip")
    assert b"somewhere" not in (tmp_path / "a.zip").read_bytes()


def test_unfinished_or_damaged_cache_is_not_packed(tmp_path):
    with pytest.raises(UserError, match="3 of 3 shards are not done"):
        pack(create(tmp_path / "new.zarr"), tmp_path / "a.zip")
    cache = complete(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr/cls/c/1/0/0"
    data = bytearray(chunk.read_bytes())
    data[7] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(UserError, match=r"cls/c/1/0/0: damaged"):
        pack(cache, tmp_path / "a.zip")


def entry(name: str, mode: int = 0o100644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def zip_of(*entries: tuple[zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for info, data in entries:
            info.compress_type = compression
            archive.writestr(info, data)
    return file


@pytest.mark.parametrize(
    "name",
    [
        "../zarr.json",
        "cls/../../zarr.json",
        "/zarr.json",
        "//zarr.json",
        "cls\\..\\zarr.json",
        "C:/zarr.json",
        "./zarr.json",
        ".hidden/zarr.json",
        "model.pkl",
        "cls/c/0/0/0.pkl",
        "cls/c/",
        "cls/c/-1",
        "cls/c/0\n",
        "a/b/c/d/e/zarr.json",
        "redo/../zarr.json",
        f"{'x' * 200}/zarr.json",
    ],
)
def test_zip_file_with_an_unexpected_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="not a file of a cache"):
        unpack(zip_of((entry("zarr.json"), b"{}"), (entry(name), b"evil")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o120777, 0o060000, 0o010000, 0o040755])
def test_symlinks_devices_and_pipes_are_refused(tmp_path, mode):
    with pytest.raises(UserError, match="not a file of a cache"):
        unpack(zip_of((entry("zarr.json", mode), b"/etc/passwd")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_compressed_entries_are_refused_so_that_nothing_can_explode(tmp_path):
    with pytest.raises(UserError, match="not a file of a cache"):
        unpack(zip_of((entry("zarr.json"), bytes(10**6)), compression=zipfile.ZIP_DEFLATED), tmp_path)


def test_overlapping_or_repeated_entries_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zip_of((entry("zarr.json"), b"{}"), (entry("zarr.json"), b"[]"))
    with pytest.raises(UserError, match="same name"):
        unpack(twice, tmp_path)
    file = zip_of((entry("a/zarr.json"), bytes(1000)))
    data = file.getvalue()
    start = data.index(b"PK\x01\x02")
    central = data[start : data.index(b"PK\x05\x06")]
    entries = b"".join(central.replace(b"a/zarr.json", f"{letter}/zarr.json".encode()) for letter in "abcdefgh")
    end = bytearray(data[data.index(b"PK\x05\x06") :])
    end[8:12] = (8).to_bytes(2, "little") * 2
    end[12:16] = len(entries).to_bytes(4, "little")
    with pytest.raises(UserError, match=r"more bytes than it has|damaged"):
        unpack(io.BytesIO(data[:start] + entries + end), tmp_path)


def test_any_damage_of_a_zip_file_is_found(tmp_path):
    complete(tmp_path / "a.zarr")
    pack(Cache(tmp_path / "a.zarr"), tmp_path / "a.zip")
    whole = (tmp_path / "a.zip").read_bytes()
    original = repacked(tmp_path / "a.zarr", tmp_path / "b.zarr")
    random = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(whole)
        data[random.integers(len(data))] ^= 1 << random.integers(8)
        if number % 10 == 9:
            data = data[: random.integers(len(data))]
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            unpack(io.BytesIO(data), folder)
            problems = verify_files(Cache(folder))[1]
        except UserError:
            continue
        assert problems or contents(folder) == contents(original.path), "damage went unnoticed"


def test_memory_does_not_grow_with_the_cache(tmp_path):
    layout = Layout(images=64, views=2**13, channels=8, grid=(1, 1), shard=8, dense="none")
    cache = create(tmp_path / "a.zarr", layout)
    for number in range(layout.shards):
        cache.write_shard(number, replace(shard(number, layout), dense=None), "default")
    tracemalloc.start()
    try:
        repacked(tmp_path / "a.zarr", tmp_path / "b.zarr")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    size = (tmp_path / "b.zip").stat().st_size
    assert size > 6 * 2**20
    assert peak < size / 2


def test_nothing_but_regular_files_is_created(tmp_path):
    complete(tmp_path / "a.zarr")
    cache = repacked(tmp_path / "a.zarr", tmp_path / "b.zarr")
    for path in cache.path.rglob("*"):
        assert path.is_dir() or (path.is_file() and not path.is_symlink())
        assert not os.access(path, os.X_OK) or path.is_dir() or os.geteuid() == 0
