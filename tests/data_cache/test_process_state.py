"""Changes of the whole process's state, by several threads: undone by the last one, to the original state."""

import logging
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from threading import Barrier

import pytest

from data_cache.system.process_state import quiet_logging, quiet_warnings, shared


def test_last_thread_to_leave_restores_the_logging_level_and_the_warnings():
    before = logging.root.manager.disable, list(warnings.filters)
    entered, first_has_left = Barrier(2), Barrier(2)

    def first():
        with quiet_logging(), quiet_warnings():
            entered.wait(10)
        first_has_left.wait(10)

    def second():
        with quiet_logging(), quiet_warnings():
            entered.wait(10)
            first_has_left.wait(10)
            assert logging.root.manager.disable == logging.ERROR
            assert warnings.filters[0][0] == "ignore"

    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(first), pool.submit(second)]:
            run.result()
    assert (logging.root.manager.disable, list(warnings.filters)) == before


def test_shared_context_is_entered_once_and_again_after_all_have_left():
    log = []

    @shared
    @contextmanager
    def context():
        log.append("made")
        yield
        log.append("undone")

    with context(), context():
        assert log == ["made"]
    assert log == ["made", "undone"]
    with context():
        assert log == ["made", "undone", "made"]


def test_shared_context_is_left_if_its_body_or_its_change_fails():
    log = []

    @shared
    @contextmanager
    def context():
        if not log:
            log.append("failed")
            raise OSError("no change")
        log.append("made")
        yield
        log.append("undone")

    with pytest.raises(OSError, match="no change"), context():
        pass
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ValueError, match="body"))
        stack.enter_context(context())
        raise ValueError("body")
    assert log == ["failed", "made", "undone"]
