"""All GPU benchmarks in one command: encoding, precompute, clustering, training steps, and the share of the peak.

ViT-B/16 at 512 px with random weights in bf16 (time does not depend on them) on synthetic images. Without a GPU it
measures nothing. The ratio is precompute's images/s, without dense tokens, over that of encoding alone.

    python benchmarks/gpu.py [--images N] [--seconds S] [--compile] [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.kmeans_backends import compare
from benchmarks.synthetic_images import UNSEEN, link_images
from pipeline.config import PrecomputeConfig
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.teacher.clip import BATCH, FrozenCLIP
from pipeline.teacher.weights import CLIPSource

SOURCE = CLIPSource("ViT-B-16-quickgelu", "random", 512)
GFLOP_PER_IMAGE = 216
"""Of the vision tower at 512 px: 1025 tokens, 12 blocks of width 768."""


def main() -> None:
    """Measure the most important figures first, and print each at once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=480, help="Skip what would start later than this.")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"ratio": None, "measured": False}) if arguments.json else "no GPU: not measured")
        return
    start, result = time.perf_counter(), {"device": torch.cuda.get_device_name(), "compile": arguments.compile}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        steps: list[Callable[[], dict[str, object]]] = [
            lambda: encoding(arguments.compile),
            lambda: precomputed(link_images(root, arguments.images), Path(folder), "none", arguments.compile),
            lambda: precomputed(root, Path(folder), "float16", arguments.compile),
            # FAISS is slow on a GPU: a few views suffice
            lambda: {"kmeans": compare(torch.device("cuda"), 32, 2), "faiss_gpus": faiss.get_num_gpus()},
            training,
        ]
        for step in steps:
            if time.perf_counter() - start > arguments.seconds:
                print(f"{arguments.seconds:.0f} s have passed: the rest is not measured", file=sys.stderr)
                break
            for name, value in step().items():
                result[name] = value
                print(f"{name}: {value}", file=sys.stderr, flush=True)
    result["ratio"] = result["precompute_none"] / result["encode"] if "precompute_none" in result else None
    print(json.dumps(result) if arguments.json else f"ratio {result['ratio']}")


def precomputed(root: Path, folder: Path, dense: Any, compiled: bool) -> dict[str, object]:
    """Images per second of all of `precompute`, and the seconds of its stages."""
    # only the first GPU, as for encoding; with "cuda" each GPU would get a process
    given = {"precision": "bf16", "device": "cuda:0", "prompts": "single", "unseen": UNSEEN}
    given |= {"clip": SOURCE.clip, "clip_weights": SOURCE.weights, "dense": dense, "compile": compiled}
    work = plan(PrecomputeConfig("folder", folder / f"{dense}.zarr", root, **given))
    work.job.encoder.clip.encode(np.zeros((BATCH["cuda"], 512, 512, 3), np.uint8))
    done = execute(work)
    return {f"precompute_{dense}": done.encoded / done.seconds, f"stages_{dense}": done.stages}


def training() -> dict[str, object]:
    """Updates from the cache and with CLIP in the loop, measured by cached_vs_online.py."""
    script = Path(__file__).with_name("cached_vs_online.py")
    done = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, check=False)
    return {"training": json.loads(done.stdout) if done.returncode == 0 else done.stderr[-300:]}


def encoding(compiled: bool) -> dict[str, float]:
    """Images per second of CLIP alone, from the GPU's own memory, and its share of the peak of matrix products."""
    clip = FrozenCLIP(SOURCE, "bf16", torch.device("cuda:0"), compiled)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH["cuda"], 512, 512, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).to(clip.device)
    batches = 64
    for count in (4, batches):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            clip.forward(images)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    rate = batches * BATCH["cuda"] / seconds
    peak = matrix_peak()
    return {
        "encode": rate,
        "tflops": rate * GFLOP_PER_IMAGE / 1e3,
        "peak_tflops": peak,
        "share": rate * GFLOP_PER_IMAGE / 1e3 / peak,
    }


def matrix_peak(side: int = 8192, count: int = 50) -> float:
    """TFLOP/s of a large bf16 product on this machine."""
    a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    for rounds in (5, count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            a @ a
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return 2 * side**3 * count / seconds / 1e12


if __name__ == "__main__":
    main()
