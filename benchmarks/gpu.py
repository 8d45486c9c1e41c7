"""Everything about a GPU in one command: encoding, precompute, clustering, training steps, and the share of the peak.

ViT-B/16 at 512 px with random weights in bf16 (time does not depend on them) on drawn photographs. Without a GPU it
says so and measures nothing. The ratio is precompute's images a second, without dense tokens, over encoding alone.

    python benchmarks/gpu.py [--compile] [--json]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.kmeans_backends import compared
from benchmarks.photographs import UNSEEN, draw_photographs
from pipeline.clip import BATCH, FrozenCLIP
from pipeline.precompute import Settings, execute, plan
from pipeline.weights import CLIPSource

SOURCE = CLIPSource("ViT-B-16-quickgelu", "random", 512)
GFLOP_PER_IMAGE = 216
"""Of the vision tower at 512 px: 1025 tokens, 12 blocks of width 768."""
DRAWN = 256
"""Photographs that are drawn; more images are copies of them."""


def main() -> None:
    """Measure what there is to measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16384)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not torch.cuda.is_available():
        print(json.dumps({"ratio": None, "measured": False}) if asked.json else "no GPU: not measured")
        return
    result = {"device": torch.cuda.get_device_name(), "compile": asked.compile}
    result |= encoding(asked.compile)
    with tempfile.TemporaryDirectory() as folder:
        root = photographs(Path(folder) / "photographs", asked.images)
        for dense in ("none", "float16"):
            cache = Path(folder) / f"{dense}.zarr"
            # the first GPU alone, as encoding has it; with "cuda" each would have a process
            given = {"clip": SOURCE, "precision": "bf16", "device": "cuda:0", "shard": 256, "prompts": "single"}
            work = plan(Settings("folder", cache, root, unseen=UNSEEN, dense=dense, compile=asked.compile, **given))
            work.job.encoder.clip.encode(np.zeros((BATCH["cuda"], 512, 512, 3), np.uint8))
            done = execute(work)
            result[f"precompute_{dense}"] = done.encoded / done.seconds
            result[f"stages_{dense}"] = done.stages
    result["kmeans"] = compared(torch.device("cuda"), 256, 5)
    result["faiss_gpus"] = faiss.get_num_gpus()
    script = Path(__file__).with_name("cached_vs_online.py")
    training = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, check=False)
    result["training"] = json.loads(training.stdout) if training.returncode == 0 else training.stderr[-300:]
    result["ratio"] = result["precompute_none"] / result["encode"]
    if asked.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name}: {value}")


def encoding(compiled: bool) -> dict[str, float]:
    """Images a second of CLIP alone, fed from the GPU's own memory, and its share of the peak of matrix products."""
    clip = FrozenCLIP(SOURCE, "bf16", torch.device("cuda:0"), compiled)
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH["cuda"], 512, 512, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).to(clip.device)
    batches = 64
    for count in (4, batches):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            clip.ask(images)
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
    """TFLOP/s of a large bf16 product, as this machine does it."""
    a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    for rounds in (5, count):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(rounds):
            a @ a
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return 2 * side**3 * count / seconds / 1e12


def photographs(root: Path, count: int) -> Path:
    """Drawn photographs, the first ones linked until there are `count`."""
    draw_photographs(root, min(count, DRAWN))
    for number in range(DRAWN, count):
        for folder, ending in (("images", "jpg"), ("labels", "png")):
            (root / f"{folder}/{number:04}.{ending}").hardlink_to(root / f"{folder}/{number % DRAWN:04}.{ending}")
    return root


if __name__ == "__main__":
    main()
