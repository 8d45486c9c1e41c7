"""Kept text features are used if they are what was kept, and made again whatever else lies in their place."""

import hashlib
import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipeline.teacher.prompts import Prompts
from pipeline.teacher.texts import text_features

WORDS = ("sky", "road", "tree")
TEACHER = {"model": "none", "weights_sha256": "0" * 64, "quick_gelu": True}
FEATURES = np.eye(3, 4, dtype=np.float32)


class Tower:
    """Counts how often it is asked."""

    def __init__(self):
        self.asked = 0

    def encode_text(self, words, templates):
        self.asked += 1
        return FEATURES.copy()


@pytest.fixture
def kept(tmp_path):
    """Where features are kept, and what asks for them: how often that needed the text tower."""

    def ask():
        tower = Tower()
        found = text_features(TEACHER, Prompts("single"), WORDS, 4, lambda: tower, tmp_path)
        np.testing.assert_array_equal(found, FEATURES)
        assert found.dtype == np.float32
        return tower.asked

    assert ask() == 1
    (file,) = (tmp_path / "text").iterdir()
    return file, ask


def header(file, **changed):
    """The same numbers and checksum under another header."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    told = json.loads(whole[8 : 8 + length])
    told["features"] |= changed
    text = json.dumps(told).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


def tensors(file, features):
    file.unlink()
    save_file({"features": features}, file, metadata={"sha256": hashlib.sha256(features.tobytes()).hexdigest()})


LIES = {
    "transposed": lambda file: header(file, shape=[4, 3]),
    "flat": lambda file: header(file, shape=[12]),
    "another shape": lambda file: header(file, shape=[3, 5]),
    "huge": lambda file: header(file, shape=[2**62, 2**62]),
    "half as many bytes": lambda file: header(file, dtype="F16"),
    "integers": lambda file: header(file, dtype="I32"),
    "numpy has none": lambda file: header(file, dtype="BF16", shape=[3, 8]),
    "no such type": lambda file: header(file, dtype="F33"),
    "offsets": lambda file: header(file, data_offsets=[4, 52]),
    "of other classes": lambda file: tensors(file, np.eye(2, 4, dtype=np.float32)),
    "wide": lambda file: tensors(file, np.eye(3, 4)),
    "not finite": lambda file: tensors(file, np.full((3, 4), np.nan, np.float32)),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "a bit": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x01"),
    "text": lambda file: file.write_text("none"),
}


def test_stored_features_are_used(kept):
    _, ask = kept
    assert ask() == 0


@pytest.mark.parametrize("lie", LIES)
def test_invalid_text_feature_file_is_rewritten(kept, lie):
    file, ask = kept
    LIES[lie](file)
    assert ask() == 1
    assert ask() == 0


def test_named_pipe_in_place_of_the_file_is_replaced(kept):
    file, ask = kept
    file.unlink()
    os.mkfifo(file)
    assert ask() == 1
    assert ask() == 0


@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_file_that_cannot_be_replaced_is_ignored(kept, kind):
    file, ask = kept
    file.unlink()
    file.mkdir() if kind == "folder" else file.symlink_to(file)
    assert ask() == 1
    assert [one.name for one in file.parent.iterdir()] == [file.name]
