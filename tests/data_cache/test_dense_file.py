"""The file of dense tokens against Zarr's own, byte for byte."""

import zlib

import numpy as np
import pytest
import zarr
from zarr.codecs import Crc32cCodec

from data_cache.dense_file import write_dense_file

IMAGES, GRID, CHANNELS = 5, (3, 2), 4


def random_tokens(images, dtype, zeros=()):
    tokens = np.random.default_rng(0).normal(0, 50, (images, *GRID, CHANNELS)).astype(dtype)
    tokens[list(zeros)] = 0
    return tokens


def written_by_zarr(folder, tokens):
    shape = (IMAGES, *GRID, CHANNELS)
    array = zarr.create_array(
        folder,
        shape=shape,
        chunks=(1, *shape[1:]),
        shards=shape,
        dtype=tokens.dtype,
        fill_value=0,
        compressors=[Crc32cCodec()],
    )
    array[: len(tokens)] = tokens
    return folder / "c/0/0/0/0"


@pytest.mark.parametrize("dtype", [np.float16, np.int8])
@pytest.mark.parametrize(("images", "zeros"), [(IMAGES, ()), (2, ()), (IMAGES, (0, 3)), (1, ())])
def test_file_and_stamp_are_those_of_zarr(tmp_path, dtype, images, zeros):
    tokens = random_tokens(images, dtype, zeros)
    expected = written_by_zarr(tmp_path / "zarr", tokens).read_bytes()
    stamp = write_dense_file(tmp_path / "0", tokens, IMAGES)
    assert (tmp_path / "0").read_bytes() == expected
    assert stamp == (len(expected), zlib.crc32(expected))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "zarr"]


def test_tokens_of_one_view_need_not_be_contiguous(tmp_path):
    tokens = random_tokens(2 * IMAGES, np.float16).reshape(IMAGES, 2, *GRID, CHANNELS)
    write_dense_file(tmp_path / "0", tokens[:, 1], IMAGES)
    expected = written_by_zarr(tmp_path / "zarr", np.ascontiguousarray(tokens[:, 1]))
    assert (tmp_path / "0").read_bytes() == expected.read_bytes()


def test_zeros_have_no_file(tmp_path):
    (tmp_path / "0").write_bytes(b"older tokens")
    assert write_dense_file(tmp_path / "0", random_tokens(IMAGES, np.int8, range(IMAGES)), IMAGES) is None
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_older_file_and_no_other(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "0").write_bytes(b"older tokens")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_dense_file(tmp_path / "0", random_tokens(IMAGES, np.float16), IMAGES)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"older tokens"]
