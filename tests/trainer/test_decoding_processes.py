"""A decoding process ends when its training process says so, and without a word when that one is gone."""

import signal
import sys

import pytest

from trainer.interrupt import end_quietly


@pytest.fixture
def said(monkeypatch):
    said, before = [], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: said.append(kind))
    end_quietly(0)
    yield said
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_it_is_silent_about_a_training_process_that_is_gone(said, kind):
    sys.excepthook(kind, kind(), None)
    assert said == []


def test_it_tells_of_anything_else(said):
    sys.excepthook(ValueError, ValueError(), None)
    assert said == [ValueError]


def test_ctrl_c_does_not_end_it(said):
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
