"""The Triton kernels: in Triton's interpreter against plain formulas, and compiled for a GPU without one."""

import os
import subprocess
import sys

import pytest
from command_line import REPOSITORY

pytest.importorskip("triton")

INTERPRETED = """
import sys
sys.path[:0] = ["tests/trainer", "tests/helpers"]
import test_pixel_sums as plain
import torch
from trainer.losses import pixel_sums, pixel_triton
from trainer.losses.pixel_terms import Terms

pixel_sums._backend = lambda logits: pixel_triton
both = Terms(plain.SEEN, True, True, False)
plain.compare(*plain.draw((2, 2), (6, 6), images=1), both)
print("the same")
"""

ALL_CASES = INTERPRETED.replace(
    'print("the same")',
    """
small = {"grid": (3, 2), "size": (12, 8), "images": 2}
for ce, nel, masked in ((1, 1, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0)):
    plain.compare(*plain.draw(**small), Terms(plain.SEEN, bool(ce), bool(nel), bool(masked)))
for size in ((3, 2), (11, 5), (2, 1)):
    plain.compare(*plain.draw((3, 2), size, images=2), both)
for scale in (0.0, 300.0):
    plain.compare(*plain.draw(**small, scale=scale), both)
logits, target = plain.draw(**small)
for label in (-1, 2, plain.SEEN):
    target[0] = label
    plain.compare(logits, target, both)
    plain.compare(logits, target, Terms(plain.SEEN, True, True, True))
pixel_triton.PIXELS, pixel_triton.CELLS, pixel_triton.ROWS = 16, 4, 4  # several tiles, and blocks of rows
plain.compare(*plain.draw(**small), both)
print("the same")
""",
)

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from trainer.losses import pixel_triton

for kernel, constants in (
    (pixel_triton._forward, {"PIXELS": pixel_triton.PIXELS}),
    (pixel_triton._backward, {"CELLS": pixel_triton.CELLS, "SPAN_Y": 8, "SPAN_X": 8}),
):
    constants |= {"CE": True, "NEL": True, "MASKED": False, "ALPHA": 0.25, "ROWS": pixel_triton.ROWS}
    numbers = ("rows", "num_seen", "y_size", "x_size", "height", "width")
    types = {name: "i32" for name in numbers} | {"target": "*i64"} | {name: "constexpr" for name in constants}
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    compiled = compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert compiled.asm["cubin"]
    assert ".local" not in compiled.asm["ptx"]  # no register is spilled
print("compiled")
"""


def run(code, **environment):
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def test_kernels_match_plain_formulas_in_the_interpreter():
    assert run(INTERPRETED, TRITON_INTERPRET="1") == "the same"


@pytest.mark.slow
def test_kernels_match_plain_formulas_in_all_cases():
    assert run(ALL_CASES, TRITON_INTERPRET="1") == "the same"


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler comes with its Linux wheels")
def test_kernels_compile_for_an_h100_without_a_gpu(tmp_path):
    assert run(COMPILED, TRITON_CACHE_DIR=str(tmp_path)) == "compiled"
