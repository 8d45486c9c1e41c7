"""A decoding process ends when its training process says so, and without a word when that one is gone."""

import os
import signal
import subprocess
import sys

import pytest
from command_line import REPOSITORY

from data_cache.system.signals import SIGNALS
from trainer.interrupt import interruptible
from trainer.loader import ignore_interrupts


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


WAITING = """
import time
from trainer.loader import ignore_interrupts
ignore_interrupts(0)
print("ready", flush=True)
time.sleep(60)
"""


def test_ctrl_c_and_anybody_s_sigterm_do_not_end_it_and_its_parent_s_does():
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    # from a process that is not their parent; never by the command `kill`, some versions of which take the group
    # "-123" for the option "-1", and that for every process there is
    stranger = "import os, signal, sys; os.killpg(int(sys.argv[1]), signal.SIGTERM)"
    subprocess.run([sys.executable, "-c", stranger, str(process.pid)], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.terminate()
    assert process.wait(timeout=30) == 0


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
