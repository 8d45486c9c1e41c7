"""Two worker processes of one thread each against one: the gain of `precompute --workers 2` on two cores.

Same scenes, same tiny CLIP, same settings; each side is a process of its own. There are two ratios of throughput: of
the whole run, in which Dask starts and each worker loads torch and builds CLIP; and of the steady part, from the
moment when every worker has finished its first shards. The steady one is printed last (`--json`: an object with
"ratio"); the claim is at least 1.7. Needs two idle cores: a worker of one thread uses some of the second one, because
it decodes and writes while CLIP runs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
SIDES = (1, 2)
SHARD = 16


def main() -> None:
    """Measure both sides in turn; in the process of one side, only that one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=384)
    parser.add_argument("--image-size", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=2, help="The best of N runs of each side counts.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", type=int, choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.images, arguments.image_size)))
        return
    rates: dict[int, dict[str, float]] = {side: {} for side in SIDES}
    for _ in range(arguments.repetitions):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--images", arguments.images]
            command += ["--image-size", arguments.image_size]
            environment = os.environ | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
            done = subprocess.run(list(map(str, command)), env=environment, check=True, stdout=subprocess.PIPE)
            found = json.loads(done.stdout)
            print(f"{side} workers: {found['whole']:.1f} images/s, steady {found['steady']:.1f}", file=sys.stderr)
            rates[side] = {part: max(rate, rates[side].get(part, 0)) for part, rate in found.items()}
    one, two = (rates[side] for side in SIDES)
    whole, steady = two["whole"] / one["whole"], two["steady"] / one["steady"]
    result = {"ratio": steady, "ratio_with_start": whole, "images_per_second": rates, "images": arguments.images}
    result |= {"cores": os.cpu_count(), "load": os.getloadavg()[0]}
    print(json.dumps(result) if arguments.json else f"with start-up {whole:.2f}; steady ratio {steady:.2f}")


def measured(workers: int, images: int, size: int) -> dict[str, float]:
    """Images per second of one run: of the whole run, and of its steady part."""
    from pipeline.config import PrecomputeConfig
    from pipeline.plan import plan
    from pipeline.precompute import execute

    reports: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"device": "cpu", "precision": "fp32", "dense": "none", "shard": SHARD, "limit": images}
        options |= {"clip": "tiny", "image_size": size}
        work = plan(PrecomputeConfig("scenes", Path(folder) / "c.zarr", workers=workers, **options))
        start = time.perf_counter()
        execute(work, lambda count: reports.append((time.perf_counter(), count)))
        end = time.perf_counter()
    warm, done = 4 * SHARD * workers, 0
    for moment, count in reports:
        done += count
        if done >= warm:
            return {"whole": images / (end - start), "steady": (images - done) / (reports[-1][0] - moment)}
    sys.exit(f"--images {images}: too few to warm up {workers} workers")


if __name__ == "__main__":
    main()
