"""What is half written beside a cache is swept, and nothing of anybody else's."""

import pytest
from caches import complete

from data_cache.drafts import draft_of, drafts_of
from data_cache.store import Cache


@pytest.mark.parametrize("name", ["c.zarr", "c[1].zarr", "c*.zarr", "ü é.zarr"])
def test_sweeping_removes_own_drafts_whatever_they_are_and_whatever_the_cache_is_called(tmp_path, name):
    complete(tmp_path / name)
    file, folder, link = (draft_of(tmp_path / name) for _ in range(3))
    file.write_text("half")
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere")
    assert set(drafts_of(tmp_path / name)) == {file, folder, link}
    Cache(tmp_path / name, mode="r+").sweep()
    assert {one.name for one in tmp_path.iterdir()} == {name, "elsewhere"}


def test_sweeping_leaves_the_files_of_others(tmp_path):
    complete(tmp_path / "c.zarr")
    others = ["c.zarr.tar.partial", "c.zarr.old.zarr.0123.partial", "c.zarr.0123.partial", "c.zarr.lock"]
    others += [draft_of(tmp_path / "c.zarr.zarr").name, draft_of(tmp_path / "cXzarr").name]
    for name in others:
        (tmp_path / name).write_text("mine")
    Cache(tmp_path / "c.zarr", mode="r+").sweep()
    assert {one.name for one in tmp_path.iterdir()} == {"c.zarr", *others}
