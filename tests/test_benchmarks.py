"""benchmarks/: every script runs with minimal settings and prints its ratio last."""

import json
import re
import subprocess
import sys

import pytest
from command_line import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import paper_signs

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
    "many_names": ("--size", 64, "--names", 3, 40),
    "paper_signs": ("benchmarks/ablation.json",),
    "precompute_vs_forward": ("--size", 64, "--images", 4, "--repetitions", 1),
    "precompute_vs_plain_loop": ("--size", 64, "--images", 2),
    "prompts_vs_encode_text": ("--classes", 1, "--repetitions", 1),
    "supervised_start": ("--size", 64, "--scenes", 8, "--updates", 2, "--batch-size", 2, "--tested", 4),
    "update": ("--students", "demo", "--repetitions", 1),
    "two_workers": ("--images", 256, "--image-size", 64, "--repetitions", 1),
}
NOT_RUN_HERE = {
    "attention_share",
    "attention_sweep",
    "crowd_statistics",
    "demo_long",
    "demo_recipes",
    "demo_views",
    "synthetic_images",
    "transductive",
}


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


def test_signs_agree_only_where_the_interval_says_so():
    seeds = {
        "full": (0.4, 0.5, 0.6),
        "no-nel": (0.38, 0.49, 0.58),
        "no-ce": (0.1, 0.5, 0.7),
        "glm-mean": (0.5, 0.6, 0.71),
    }
    equal = dict.fromkeys(("no-glm", "no-generate", "glm-max", "vla-identity"), seeds["no-nel"])
    rows = {
        name: [{"seed": seed, "metrics": {"1.5": {"hIoU": value}}} for seed, value in enumerate(values)]
        for name, values in (seeds | equal | {"vla-mlp": (0.39, 0.51, 0.6)}).items()
    }
    found = {row: verdict for row, (_, verdict) in paper_signs.compare(rows, "", "1.5").items()}
    assert found["no-nel"] == "agrees"  # -2, -1 and -2 points: the interval is (-3.1, -0.2)
    assert found["no-ce"] == "cannot tell"
    assert found["glm-mean"] == found["attention first"] == "disagrees"
    assert found["vla-mlp"] == "cannot tell"  # -1, +1 and 0 points: the interval is (-2.5, 2.5)
    assert found["vla-identity"] == "cannot tell"


def test_signs_of_a_single_seed_are_unknown_and_valid_json():
    def no_constant(name):
        raise AssertionError(name)

    first = json.loads(run("paper_signs", "--seeds", 1, "--json"), parse_constant=no_constant)
    every = json.loads(run("paper_signs", "--json"))
    rows = json.loads((REPOSITORY / "benchmarks/ablation.json").read_text())["rows"]
    hiou = {row: 100 * rows[row][0]["metrics"]["1.5"]["hIoU"] for row in ("full", "no-ce")}
    interval, verdict = first["tables"]["full at gamma 1.5"]["no-ce"]
    assert interval == [pytest.approx(hiou["no-ce"] - hiou["full"]), None, None]
    assert verdict == "cannot tell"
    assert every["tables"]["full at gamma 1.5"]["no-ce"][1] == "agrees"


def test_signs_of_an_ablation_without_the_rows_of_the_tables_are_refused(tmp_path, monkeypatch, capsys):
    file = tmp_path / "result.json"
    file.write_text(json.dumps({"rows": {"full": [], "glm-mean": []}}))
    monkeypatch.setattr(sys, "argv", ["paper_signs.py", str(file)])
    with pytest.raises(SystemExit):
        paper_signs.main()
    assert f"{file}: needs the rows full, no-nel" in capsys.readouterr().err


def test_2000_names_take_less_than_2_gib_more_than_ten():
    command = [sys.executable, REPOSITORY / "benchmarks/many_names.py", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert json.loads(done.stdout.splitlines()[-1])["more_gib"] < 2


@pytest.mark.parametrize("name", ["kmeans_backends", "large_cache", "many_images", "prompts_vs_encode_text"])
def test_ratio_is_printed_last(name):
    assert re.search(r"ratio [\d.]+( \(.*\))?$", run(name).strip())
