"""Stored text features are used if they are valid, and computed again otherwise."""

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
    """A text tower that counts its calls."""

    def __init__(self):
        self.calls = 0

    def encode_text(self, words, templates):
        self.calls += 1
        return FEATURES.copy()

    def unknown_names(self, words):
        return words[1:2]


@pytest.fixture
def stored(tmp_path):
    """The file of features, and a function that requests them and returns how often the text tower was called."""

    def request():
        tower = Tower()
        found, unknown = text_features(TEACHER, Prompts("single"), WORDS, 4, lambda: tower, tmp_path)
        assert unknown == ("road",)
        np.testing.assert_array_equal(found, FEATURES)
        assert found.dtype == np.float32
        return tower.calls

    assert request() == 1
    (file,) = (tmp_path / "text").iterdir()
    return file, request


def change_header(file, **changed):
    """Change the header, but neither data nor checksum."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + length])
    entries["features"] |= changed
    text = json.dumps(entries).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def replace_features(file, features):
    file.unlink()
    words = np.frombuffer(b'["road"]', np.uint8)
    checksum = hashlib.sha256(features.tobytes() + words.tobytes()).hexdigest()
    save_file({"features": features, "unknown": words}, file, metadata={"sha256": checksum})


INVALID = {
    "transposed": lambda file: change_header(file, shape=[4, 3]),
    "flat": lambda file: change_header(file, shape=[12]),
    "another shape": lambda file: change_header(file, shape=[3, 5]),
    "huge": lambda file: change_header(file, shape=[2**62, 2**62]),
    "half as many bytes": lambda file: change_header(file, dtype="F16"),
    "integers": lambda file: change_header(file, dtype="I32"),
    "numpy has none": lambda file: change_header(file, dtype="BF16", shape=[3, 8]),
    "no such type": lambda file: change_header(file, dtype="F33"),
    "offsets": lambda file: change_header(file, data_offsets=[4, 52]),
    "of other classes": lambda file: replace_features(file, np.eye(2, 4, dtype=np.float32)),
    "wide": lambda file: replace_features(file, np.eye(3, 4)),
    "not finite": lambda file: replace_features(file, np.full((3, 4), np.nan, np.float32)),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "empty": lambda file: file.write_bytes(b""),
    "a bit": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"\x01"),
    "text": lambda file: file.write_text("none"),
}


def test_stored_features_are_used(stored):
    _, request = stored
    assert request() == 0


@pytest.mark.parametrize("kind", INVALID)
def test_invalid_text_feature_file_is_rewritten(stored, kind):
    file, request = stored
    INVALID[kind](file)
    assert request() == 1
    assert request() == 0


def test_named_pipe_in_place_of_the_file_is_replaced(stored):
    file, request = stored
    file.unlink()
    os.mkfifo(file)
    assert request() == 1
    assert request() == 0


@pytest.mark.parametrize("kind", ["folder", "loop"])
def test_file_that_cannot_be_replaced_is_ignored(stored, kind):
    file, request = stored
    file.unlink()
    file.mkdir() if kind == "folder" else file.symlink_to(file)
    assert request() == 1
    assert [one.name for one in file.parent.iterdir()] == [file.name]
