"""A decoding process ends when its training process ends it, and silently when that process is gone."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import REPOSITORY

from data_cache.errors import InterruptError
from data_cache.system.signals import SIGNALS
from trainer.interrupt import interruptible
from trainer.loader import START_METHOD, ignore_interrupts


@pytest.fixture
def reported(monkeypatch):
    reported, handlers = [], {number: signal.getsignal(number) for number in SIGNALS}
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: reported.append(kind))
    with monkeypatch.context() as patch:
        patch.delattr(signal, "sigwaitinfo", raising=False)  # this process must keep handling SIGTERM
        ignore_interrupts(0)
    yield reported
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("kind", [ConnectionResetError, BrokenPipeError, EOFError])
def test_a_missing_training_process_is_not_reported(reported, kind):
    sys.excepthook(kind, kind(), None)
    assert reported == []


def test_other_errors_are_reported(reported):
    sys.excepthook(ValueError, ValueError(), None)
    assert reported == [ValueError]


TRAINING = """
import time
from multiprocessing import get_context
from trainer.loader import START_METHOD, ignore_interrupts

def decode():
    ignore_interrupts(0)
    print("ready", flush=True)
    time.sleep(60)

decoding = get_context(START_METHOD).Process(target=decode)
decoding.start()
print(decoding.pid, flush=True)
input()
print(decoding.is_alive(), flush=True)
decoding.terminate()
decoding.join(30)
print(decoding.exitcode, flush=True)
"""


@pytest.mark.skipif(START_METHOD is None, reason="this platform does not report which process sent a signal")
def test_only_a_sigterm_of_the_training_process_ends_it():
    # let the BLAS library start its threads, as it does for most users
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
    output, _ = process.communicate("continue\n", timeout=60)
    assert output.split() == ["True", "0"]


def test_a_second_ctrl_c_interrupts_at_once_and_a_second_sigterm_does_not(reported):
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)

    def signaled():
        with interruptible() as interrupted:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupted()
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            raise InterruptError("saved")

    with pytest.raises(InterruptError, match="saved"):
        signaled()
    assert all(signal.getsignal(number) == signal.default_int_handler for number in SIGNALS)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_too_late_for_the_training_ends_what_follows(reported, number):
    signal.signal(number, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), interruptible():
        os.kill(os.getpid(), number)
