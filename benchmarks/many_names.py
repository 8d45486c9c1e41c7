"""Peak memory of `predict` with many class names, which must hardly exceed that with few.

Segments one image with few and with many names (10 and 2,000), each in a process of its own. The student (SegFormer,
MiT-B0) and the text features have random weights, and the names count as the training classes, so no CLIP is needed.
Prints the additional memory and, last, the ratio of the seconds per name (`--json`: an object with "ratio" and
"more_gib"). The claim is at most 2 GiB more.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> None:
    """Measure both; in the process of one side, only that one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, nargs=2, default=[10, 2000], metavar=("FEW", "MANY"))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--sliding", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.size, arguments.sliding)))
        return
    found = []
    for names in arguments.names:
        command = [sys.executable, *sys.argv, "--side", str(names)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{names} names: {found[-1]}", file=sys.stderr)
    few, many = found
    per_name = [side["seconds"] / names for side, names in zip(found, arguments.names, strict=True)]
    result = {"ratio": per_name[1] / per_name[0], "more_gib": many["peak_gib"] - few["peak_gib"], "runs": found}
    print(json.dumps(result) if arguments.json else f"{result['more_gib']:.2f} GiB more; ratio {result['ratio']:.3f}")


def measured(names: int, size: int, sliding: bool) -> dict[str, float]:
    """Peak resident set size in GiB, and seconds of the second image."""
    import numpy as np
    import torch

    from data_cache.splits import Split
    from experiments.zero_shot import ZeroShotSegmenter
    from trainer.checkpoint import Checkpoint
    from trainer.config import TrainConfig
    from trainer.students.network import StudentNetwork

    torch.manual_seed(0)
    channels, classes = 512, tuple(f"name {index}" for index in range(names))
    network = StudentNetwork("segformer", "mit_b0", "none", channels).eval()
    card = {"prompts": {"name": "zegclip15"}}
    checkpoint = Checkpoint(
        TrainConfig(), network, Split(classes, classes[::3]), torch.randn(names, channels), size, 1, card
    )
    segmenter, image = (
        ZeroShotSegmenter(checkpoint, sliding),
        np.random.default_rng(0).integers(0, 256, (size, size, 3)),
    )
    for _ in range(2):
        start = time.perf_counter()
        segmenter.predict(image.astype(np.uint8))
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_gib": peak / (2**30 if sys.platform == "darwin" else 2**20), "seconds": seconds}


if __name__ == "__main__":
    main()
