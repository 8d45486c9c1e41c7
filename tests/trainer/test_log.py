"""The log: every good line is kept, no other stops a run, and one reader serves training and report."""

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
    "half": b'{"step": 3, "total": 0.',
    "text": b'{"step": "x"}',
    "truth": b'{"step": true}',
    "negative": b'{"step": -4, "total": 1.0}',
    "list": b"[1, 2]",
    "words": b'{"step": 3, "total": "1.0"}',
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


def test_damage_at_the_end_is_cut_off_and_said_in_one_line(path, junk):
    path.write_bytes(line(1) + b"\n" + line(2) + b"\n" + junk)
    said = []
    repair_log(path, said.append)
    assert steps(path) == [1, 2]
    assert said == [f"{path}: dropped 1 line that could not be read"]


def test_damage_in_the_middle_costs_no_good_line(path, junk):
    path.write_bytes(b"\n".join([line(1), junk, line(2), junk, line(3), b""]))
    assert [one["step"] for one in read_log(path)[0]] == [1, 2, 3]
    assert read_log(path)[1] == 2
    said = []
    repair_log(path, said.append)
    assert said == [f"{path}: dropped 2 lines that could not be read"]
    with reopen_log(path, 2) as file:
        file.write('{"step": 3}\n')
    assert steps(path) == [1, 2, 3]


def test_a_sound_log_is_left_alone_without_a_word(path):
    path.write_bytes(line(1) + b"\n")
    before, said = path.stat().st_ino, []
    repair_log(path, said.append)
    assert (path.stat().st_ino, said) == (before, [])


def test_a_log_is_rewritten_whole_or_not_at_all(path, monkeypatch):
    path.write_bytes(line(1) + b"\n" + line(2) + b"\n")
    before = path.read_bytes()

    def killed(_):
        raise OSError(errno.EIO, "killed")

    monkeypatch.setattr("data_cache.system.atomic.fsync", killed)
    with pytest.raises(OSError, match="killed"):
        reopen_log(path, 1)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_run_whose_log_is_damaged_is_resumed_and_says_so(tiny_config, tmp_path):
    run, said = tmp_path / "run", []
    train(tiny_config(iterations=3), run)
    texts = (run / LOG).read_bytes().splitlines()
    (run / LOG).write_bytes(b"\n".join([texts[0], b"\xff\xfe", *texts[1:], b"null"]))
    train(tiny_config(iterations=3), run, resume=True, log=said.append)
    assert steps(run / LOG) == [1, 2, 3]
    assert said == [f"{run / LOG}: dropped 2 lines that could not be read"]


def test_a_named_pipe_in_place_of_the_log_is_not_waited_for(path):
    os.mkfifo(path)
    assert read_log(path) == ([], 0)


def test_a_byte_order_mark_costs_no_line(path):
    path.write_bytes(b"\xef\xbb\xbf" + line(1) + b"\n" + line(2))
    assert [one["step"] for one in read_log(path)[0]] == [1, 2]
