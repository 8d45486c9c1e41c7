"""What the cache saves: seconds per update and peak memory, from the cache and with CLIP in the loop.

Both train the same student (mit_b0) on the same views; the peer is `train --online`, in the same run. Two teachers:
the tiny CLIP at 256 px, and ViT-B/16 at 512 px (random weights: time does not depend on them). Scenes are drawn, so no
files are needed. Each training is a process of its own; the time per update is the median without the first two. The
ratio of the last teacher is printed last (`--json`: an object with "ratio").
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).parents[1]
TEACHERS = {
    "tiny CLIP, 256 px": (("--clip", "tiny"), {"size": 256, "iterations": 12, "batch_size": 8}),
    "ViT-B/16, 512 px": (
        ("--clip", "ViT-B-16-quickgelu", "--clip-weights", "random"),
        {"size": 512, "iterations": 6, "batch_size": 4},
    ),
}


def main() -> None:
    """Precompute, then train both ways, for each teacher."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", type=int, default=len(TEACHERS), help="Only the first N teachers.")
    parser.add_argument("--updates", type=int, help="Updates of each training, instead of 12 and 6.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    shorter = {"iterations": arguments.updates} if arguments.updates else {}
    result: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (clip, settings) in list(TEACHERS.items())[: arguments.teachers]:
            place = Path(folder) / name.split(",")[0].replace("/", "")
            place.mkdir()
            cache = place / "scenes.zarr"
            run("precompute", "--dataset", "scenes", *clip, "--limit", "16", "--views", "2", "--cache", cache)
            common = {"encoder_weights": "none", "log_every": 1, "workers": 2, "loss_stride": 4, "cache": str(cache)}
            (place / "config.json").write_text(json.dumps(common | settings | shorter))
            measured = {}
            for way in ((), ("--online",)):
                out = place / ("online" if way else "cached")
                peak = run("train", "--config", place / "config.json", "--out", out, *way)["peak_bytes"]
                log = [json.loads(line)["seconds"] for line in (out / "log.jsonl").read_text().splitlines()]
                measured[out.name] = (float(np.median(np.diff(log)[1:])), peak / 2**30)
            (cached, cached_peak), (online, online_peak) = measured["cached"], measured["online"]
            result[name] = {
                "cached_seconds": cached,
                "online_seconds": online,
                "ratio": online / cached,
                "cached_peak_gib": cached_peak,
                "online_peak_gib": online_peak,
            }
    ratio = result[name]["ratio"]
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), **result, "ratio": ratio}))
        return
    for name, found in result.items():
        print(
            f"{name}: {found['cached_seconds']:.2f} s per update from the cache, {found['online_seconds']:.2f} s with "
            f"CLIP in the loop: {found['ratio']:.1f}x; peak {found['cached_peak_gib']:.2f} and "
            f"{found['online_peak_gib']:.2f} GiB"
        )
    print(f"ratio {ratio:.2f}")


def run(*arguments: object) -> dict[str, float]:
    """Run one of our commands in a process of its own and return its JSON."""
    command = [sys.executable, str(REPOSITORY / "cli.py"), *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
