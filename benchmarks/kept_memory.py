"""CLIP on a CPU with freed memory kept (`keep_freed_memory`) against glibc's defaults.

The sides alternate, each in its own process, because the setting cannot be undone. Both are bare forward loops in a
thread, as in `precompute`. Prints the median ratio of seconds last (`--json`: an object with "ratio").
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

sys.path.insert(0, str(Path(__file__).parents[1]))

SIDES = ("given_back", "kept")


def main() -> None:
    """Measure both sides in turn; in the process of one side, only that one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments)))
        return
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.repetitions):
        for side, runs in found.items():
            done = subprocess.run([sys.executable, *sys.argv, "--side", side], check=True, stdout=subprocess.PIPE)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{side}: {runs[-1]}", file=sys.stderr)
    ratios = [theirs["seconds"] / ours["seconds"] for theirs, ours in zip(*found.values(), strict=True)]
    memory = [max(run["gigabytes"] for run in runs) for runs in found.values()]
    result = {"ratio": statistics.median(ratios), "all": ratios, "memory": memory[1] / memory[0], "runs": found}
    print(
        json.dumps(result) if arguments.json else f"peak memory x {result['memory']:.3f}; ratio {result['ratio']:.2f}"
    )


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds per image, the system's share of them, and the peak memory."""
    import torch

    from benchmarks.precompute_vs_forward import forward
    from data_cache.system.environment import keep_freed_memory
    from pipeline.teacher.clip import FrozenCLIP, resolve_precision
    from pipeline.teacher.weights import CLIPSource

    if arguments.side == "kept":
        keep_freed_memory()
    cpu, images = torch.device("cpu"), arguments.images
    clip = FrozenCLIP(
        CLIPSource(arguments.clip, "random", arguments.size), resolve_precision(arguments.precision, cpu), cpu
    )
    found = {}

    def loop() -> None:
        forward(clip, clip.batch, clip.image_size)
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        forward(clip, images, clip.image_size)
        found["seconds"] = (time.perf_counter() - start) / images
        after = resource.getrusage(resource.RUSAGE_SELF)
        found["system_seconds"] = (after.ru_stime - before.ru_stime) / images
        found["gigabytes"] = after.ru_maxrss / 2**20

    thread = Thread(target=loop)
    thread.start()
    thread.join()
    return found


if __name__ == "__main__":
    main()
