"""Whether glibc keeps freed memory, measured by page faults."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="requires glibc")

COUNT_PAGE_FAULTS = """
import ctypes, resource, threading
import numpy as np
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page would count as one fault
from data_cache.system.devices import resolve_device
resolve_device("{device}") if "{device}" else None
faults = []
def allocate():
    for _ in range(6):
        np.ones(2**23)  # 64 MiB
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
thread = threading.Thread(target=allocate)
thread.start(); thread.join()
print(faults[5] - faults[1])
"""


def page_faults(device, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    code = COUNT_PAGE_FAULTS.format(device=device)
    result = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True, check=True
    )
    return int(result.stdout)


@pytest.mark.slow
def test_freed_memory_is_reused_on_cpu():
    assert page_faults("cpu") < 0.01 * page_faults("")


@pytest.mark.parametrize(
    "own",
    [
        {"MALLOC_MMAP_THRESHOLD_": "1000000"},
        pytest.param({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}, marks=pytest.mark.slow),
    ],
)
def test_user_malloc_settings_take_precedence(own):
    assert page_faults("cpu", **own) > 0.9 * page_faults("", **own)
