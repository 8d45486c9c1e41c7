"""Peak memory of `precompute`, which must not grow with ten times as many images.

Runs `precompute` on few scenes and on many (200 and 2,000), each in a process of its own with the same settings (tiny
CLIP, one thread), and prints the ratio of the peak resident set sizes last (`--json`: an object with "ratio"). The
claim is at most 1.05.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    """Measure both, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs=2, default=[200, 2000], metavar=("FEW", "MANY"))
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=1, help="The lowest peak of N runs counts.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    peaks: dict[int, float] = {}
    for _ in range(arguments.repetitions):
        for images in arguments.images:
            with tempfile.TemporaryDirectory() as folder:
                peak = peak_mib(images, arguments.image_size, Path(folder))
            print(f"{images} images: {peak:.1f} MiB peak", file=sys.stderr)
            peaks[images] = min(peak, peaks.get(images, peak))
    few, many = (peaks[images] for images in arguments.images)
    result = {"ratio": many / few, "peak_mib": peaks, "machine": platform.processor() or platform.machine()}
    print(json.dumps(result) if arguments.json else f"ratio {many / few:.3f} ({few:.1f} and {many:.1f} MiB)")


def peak_mib(images: int, size: int, folder: Path) -> float:
    """Peak resident set size of one `precompute`, in MiB, as the system counted it."""
    options = ("--clip", "tiny", "--image-size", size, "--device", "cpu", "--cache", folder / "scenes.zarr")
    command = [sys.executable, REPOSITORY / "cli.py", "precompute", "--dataset", "scenes", "--limit", images, *options]
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit((folder / "log").read_text().strip().splitlines()[-1])
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
