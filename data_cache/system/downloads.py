"""Downloads from the Hugging Face Hub by other libraries: quiet, and over in seconds on a machine that is offline."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from queue import Empty, Queue
from threading import Thread

from data_cache.errors import one_line
from data_cache.system.process_state import quiet_logging, shared

PATIENCE = 3.0
"""Seconds in which the Hub must answer."""


@contextmanager
def hub_downloads() -> Iterator[str]:
    """Let libraries download within, and silence their logs. Yields why nothing can be downloaded, or "".

    If the Hub does not answer, only files that have been downloaded before are available: left alone, huggingface_hub
    retries for a minute.
    """
    from huggingface_hub import constants

    problem = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _problem(constants.ENDPOINT)
    with quiet_logging(), _offline() if problem else nullcontext():
        yield problem


@shared
@contextmanager
def _offline() -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    constants.HF_HUB_OFFLINE = True
    socket.setdefaulttimeout(PATIENCE)  # for the few files that come from other hosts
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        socket.setdefaulttimeout(before[1])


def _problem(endpoint: str) -> str:
    """Why the Hub does not answer; "" if it does."""
    from huggingface_hub import get_session

    reasons: Queue[str] = Queue()

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=PATIENCE).status_code
            reasons.put("" if status < 500 else f"answers with status {status}")
        except Exception as error:  # of any library below
            reasons.put(one_line(error, 100))

    # no timeout covers a lookup of the host's name, so the thread may have to be left behind
    Thread(target=ask, daemon=True).start()
    try:
        reason = reasons.get(timeout=PATIENCE)
    except Empty:
        reason = f"no answer within {PATIENCE:g} s"
    return f"{endpoint}: {reason}" if reason else ""
