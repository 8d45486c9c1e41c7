"""Whether freed memory stays with the process, seen by the pages the system hands out."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")

ASKED = """
import resource, threading
import numpy as np
from data_cache.system.devices import resolve_device
resolve_device("{device}") if "{device}" else None
found = []
def pages():
    for turn in range(6):
        np.ones(2**23)  # 64 MiB
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
thread = threading.Thread(target=pages)
thread.start(); thread.join()
print(found[5] - found[1])
"""


def pages_asked_for(device, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    code = ASKED.format(device=device)
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.slow
def test_freed_memory_is_reused_on_cpu():
    assert pages_asked_for("cpu") < 0.01 * pages_asked_for("")


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        pytest.param({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}, marks=pytest.mark.slow),
    ],
)
def test_user_malloc_settings_take_precedence(own):
    assert pages_asked_for("cpu", **own) > 0.9 * pages_asked_for("", **own)
