"""A decoding process ends when its training process says so, and without a word when that one is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import REPOSITORY

from data_cache.system.signals import SIGNALS
from trainer.interrupt import interruptible
from trainer.loader import FORK, ignore_interrupts


@pytest.fixture
def said(monkeypatch):
    said, before = [], {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: said.append(kind))
    with monkeypatch.context() as patch:
        patch.delattr(signal, "sigwaitinfo", raising=False)  # this process is to answer its own SIGTERM
        ignore_interrupts(0)
    yield said
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_it_is_silent_about_a_training_process_that_is_gone(said, kind):
    sys.excepthook(kind, kind(), None)
    assert said == []


def test_it_tells_of_anything_else(said):
    sys.excepthook(ValueError, ValueError(), None)
    assert said == [ValueError]


TRAINING = """
import time
from multiprocessing import get_context
from trainer.loader import FORK, ignore_interrupts

def decode():
    ignore_interrupts(0)
    print("ready", flush=True)
    time.sleep(60)

decoding = get_context(FORK).Process(target=decode)
decoding.start()
print(decoding.pid, flush=True)
input()
print(decoding.is_alive(), flush=True)
decoding.terminate()
decoding.join(30)
print(decoding.exitcode, flush=True)
"""


@pytest.mark.skipif(FORK is None, reason="only a forked process tells who sends a signal")
def test_ctrl_c_and_anybody_s_sigterm_do_not_end_it_and_its_parent_s_does():
    # a BLAS library with threads of its own, as most users have it
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    decoding, ready = sorted(process.stdout.readline() for _ in range(2))
    assert ready == "ready\n"
    for number in SIGNALS:
        os.kill(int(decoding), number)
    time.sleep(0.5)
    told, _ = process.communicate("go on\n", timeout=60)
    assert told.split() == ["True", "0"]


def test_a_second_ctrl_c_is_hard_and_a_second_sigterm_is_not(said):
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    with interruptible() as interrupted:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert all(signal.getsignal(number) == signal.default_int_handler for number in SIGNALS)
