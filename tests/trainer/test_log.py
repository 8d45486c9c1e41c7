"""The log: valid lines are kept, and damaged lines never stop a run."""

import errno
import json
import os

import pytest

from trainer.loop import train
from trainer.run import LOG, read_log, reopen_log, repair_log

JUNK = {
    "null": b"null",
    "empty": b"{}",
    "bytes": b"\xff\xfe\x00",
    "truncated": b'{"step": 3, "total": 0.',
    "text step": b'{"step": "x"}',
    "bool": b'{"step": true}',
    "negative": b'{"step": -4, "total": 1.0}',
    "list": b"[1, 2]",
    "text value": b'{"step": 3, "total": "1.0"}',
    "nested": b"[" * 100_000,
    "huge": b'{"step": 3, "total": 1' + b"0" * 400 + b"}",
}


def line(step):
    return json.dumps({"step": step, "total": 0.5}).encode()


def steps(path):
    return [json.loads(text)["step"] for text in path.read_text().splitlines()]


@pytest.fixture(params=JUNK.values(), ids=JUNK)
def junk(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.jsonl"


def test_a_damaged_last_line_is_dropped_and_reported(path, junk):
    path.write_bytes(line(1) + b"\n" + line(2) + b"\n" + junk)
    messages = []
    repair_log(path, messages.append)
    assert steps(path) == [1, 2]
    assert messages == [f"{path}: dropped 1 line that could not be read"]


def test_damaged_lines_in_the_middle_do_not_affect_valid_ones(path, junk):
    path.write_bytes(b"\n".join([line(1), junk, line(2), junk, line(3), b""]))
    assert [entry["step"] for entry in read_log(path)[0]] == [1, 2, 3]
    assert read_log(path)[1] == 2
    messages = []
    repair_log(path, messages.append)
    assert messages == [f"{path}: dropped 2 lines that could not be read"]
    with reopen_log(path, 2) as file:
        file.write('{"step": 3}\n')
    assert steps(path) == [1, 2, 3]


def test_a_valid_log_is_not_rewritten(path):
    path.write_bytes(line(1) + b"\n")
    inode, messages = path.stat().st_ino, []
    repair_log(path, messages.append)
    assert (path.stat().st_ino, messages) == (inode, [])


def test_a_log_is_rewritten_atomically(path, monkeypatch):
    path.write_bytes(line(1) + b"\n" + line(2) + b"\n")
    before = path.read_bytes()

    def fail(_):
        raise OSError(errno.EIO, "killed")

    monkeypatch.setattr("data_cache.system.atomic.fsync", fail)
    with pytest.raises(OSError, match="killed"):
        reopen_log(path, 1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_run_with_a_damaged_log_is_resumed_with_a_message(tiny_config, tmp_path):
    run, messages = tmp_path / "run", []
    train(tiny_config(iterations=3), run)
    texts = (run / LOG).read_bytes().splitlines()
    (run / LOG).write_bytes(b"\n".join([texts[0], b"\xff\xfe", *texts[1:], b"null"]))
    train(tiny_config(iterations=3), run, resume=True, log=messages.append)
    assert steps(run / LOG) == [1, 2, 3]
    assert messages == [f"{run / LOG}: dropped 2 lines that could not be read"]


def test_a_named_pipe_in_place_of_the_log_does_not_block(path):
    os.mkfifo(path)
    assert read_log(path) == ([], 0)


def test_a_byte_order_mark_is_ignored(path):
    path.write_bytes(b"\xef\xbb\xbf" + line(1) + b"\n" + line(2))
    assert [entry["step"] for entry in read_log(path)[0]] == [1, 2]
