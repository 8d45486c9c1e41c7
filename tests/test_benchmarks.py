"""benchmarks/: every script runs with minimal settings and prints its ratio last."""

import json
import re
import subprocess
import sys

import pytest
from command_line import REPOSITORY

pytestmark = pytest.mark.slow

SMALLEST = {
    "bf16_vs_fp32": ("--size", 64, "--repetitions", 1, "--views", 10),
    "cached_vs_online": ("--teachers", 1, "--updates", 4),
    "dense_recipes": ("--size", 64, "--rounds", 1),
    "feed": ("--images", 64, "--fed", 64),
    "flat_memory": ("--images", 4, 8, "--image-size", 64),
    "gpu": (),
    "kept_memory": ("--size", 64, "--images", 4, "--repetitions", 1),
    "kmeans_backends": ("--views", 2, "--repetitions", 1),
    "large_cache": ("--images", 100),
    "many_images": ("--images", 100),
    "precompute_vs_forward": ("--size", 64, "--images", 4, "--repetitions", 1),
    "precompute_vs_plain_loop": ("--size", 64, "--images", 2),
    "prompts_vs_encode_text": ("--classes", 1, "--repetitions", 1),
    "update": ("--students", "demo", "--repetitions", 1),
    "two_workers": ("--images", 256, "--image-size", 64, "--repetitions", 1),
}
NOT_RUN_HERE = {"attention_share", "demo_long", "demo_views", "synthetic_images"}


def run(name, *arguments):
    command = [sys.executable, REPOSITORY / f"benchmarks/{name}.py", *SMALLEST[name], *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_every_script_is_listed():
    there = {file.stem for file in (REPOSITORY / "benchmarks").glob("*.py")}
    assert there == SMALLEST.keys() | NOT_RUN_HERE
    table = (REPOSITORY / "benchmarks/README.md").read_text()
    assert all(f"`{name}.py`" in table for name in SMALLEST)


@pytest.mark.parametrize("name", SMALLEST)
def test_json_output_has_a_ratio(name):
    if name == "precompute_vs_plain_loop":
        pytest.importorskip("sklearn")
    result = json.loads(run(name, "--json").splitlines()[-1])
    assert "ratio" in result
    assert result["ratio"] is None if name == "gpu" and not result.get("measured", True) else result["ratio"] > 0


@pytest.mark.parametrize("name", ["kmeans_backends", "large_cache", "many_images", "prompts_vs_encode_text"])
def test_ratio_is_printed_last(name):
    assert re.search(r"ratio [\d.]+( \(.*\))?$", run(name).strip())
