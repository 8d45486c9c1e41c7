"""Killed at the worst instants and rerun, a run writes the same cache."""

import pytest
from command_line import TINY, folder_options, in_a_process

from data_cache.reader import Cache

KILL = """
import os, signal
from data_cache.reader import Cache
from data_cache.journal import Journal
def kill(): os.kill(os.getpid(), signal.SIGKILL)
"""
CHUNKS_WITHOUT_RECORD = (
    KILL
    + """
commit = Journal.commit
records = []
def dying(self, shard, *a):
    records.extend([shard] * (self._array.path == "masks/default/journal"))
    return kill() if len(records) == 2 else commit(self, shard, *a)
Journal.commit = dying
"""
)
BETWEEN_THE_TWO_RECORDS = CHUNKS_WITHOUT_RECORD.replace("masks/default/journal", "journal")
HALF_THE_ARRAYS = (
    KILL
    + """
import zarr
writes = []
write = zarr.Array.__setitem__
def dying(self, *a):
    write(self, *a)
    if self.path == "cls":
        writes.append(a)
        if len(writes) == 2: kill()
zarr.Array.__setitem__ = dying
"""
)
HALF_A_FILE = (
    KILL
    + """
import zarr.storage._local as local  # private: where zarr writes every file
put = local._put
files = set()
def dying(path, value, exclusive=False):
    files.update([path] * ("/cls/c/" in path.as_posix()))
    if len(files) == 2:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".0123.partial").write_bytes(value.to_bytes()[:20])
        kill()
    return put(path, value, exclusive)
local._put = dying
"""
)


@pytest.mark.parametrize(
    "instant",
    [
        pytest.param(CHUNKS_WITHOUT_RECORD, id="chunks-without-record", marks=pytest.mark.slow),
        pytest.param(BETWEEN_THE_TWO_RECORDS, id="between-the-two-records"),
        pytest.param(HALF_THE_ARRAYS, id="half-the-arrays", marks=pytest.mark.slow),
        pytest.param(HALF_A_FILE, id="half-a-file"),
    ],
)
def test_rerun_after_a_kill_mid_shard_equals_an_uninterrupted_run(clipteacher, drawn, tmp_path, instant):
    def arguments(cache):
        data = (*folder_options(drawn), "--shard", 2)
        return ("precompute", *data, *TINY, "--cache", cache, "--json")

    killed, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    assert in_a_process(*arguments(killed), prelude=instant).returncode == -9
    pending = Cache(killed).pending_shards("default")
    assert 0 < len(pending) < 3, "killed neither before the first shard nor after the last"

    assert clipteacher.good(*arguments(killed)).json["encoded"] == 2 * len(pending)
    clipteacher.good(*arguments(whole))
    files = [{f.relative_to(c): f.read_bytes() for f in c.rglob("*") if f.is_file()} for c in (killed, whole)]
    assert files[0] == files[1]
