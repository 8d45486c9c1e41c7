"""CLIP's weights in bf16 against fp32 on a CPU: time of a forward pass, and agreement of the masks.

Time: ViT-B/16 at 512 px with random weights, alternating; the ratio is the seconds in fp32 over those in bf16. Masks:
the tiny CLIP on drawn scenes, adjusted Rand index of each view's fused labels against those from fp32.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import open_dataset
from data_cache.sample import crop_image
from data_cache.splits import Split
from data_cache.system.devices import resolve_device
from data_cache.views import whole
from pipeline.masks.fusion import THRESHOLD, adjusted_rand_index
from pipeline.masks.masker import Masker
from pipeline.teacher.clip import BATCH, FrozenCLIP
from pipeline.teacher.weights import CLIPSource

PRECISIONS = ("fp32", "bf16")
CPU = resolve_device("cpu")


def main() -> None:
    """Time both, then compare their masks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--views", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    able = torch.cpu.get_capabilities()
    if not (able.get("amx_bf16") or able.get("avx512_bf16")):
        print("this CPU does not multiply in bf16; expect a ratio below 1", file=sys.stderr)
    seconds = forward_seconds(arguments.clip, arguments.size, arguments.repetitions)
    index = np.sort(agreement(arguments.views))
    result = {
        "ratio": seconds["fp32"] / seconds["bf16"],
        "seconds": seconds,
        "rand_index": {"mean": float(index.mean()), "quantiles": np.quantile(index, [0, 0.05, 0.25, 0.5, 1]).tolist()},
        "views": arguments.views,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    print(
        "adjusted Rand index, deciles of the views:", " ".join(f"{value:.3f}" for value in index[:: len(index) // 10])
    )
    print(f"mean {index.mean():.4f}, minimum {index[0]:.3f}")
    print(f"fp32 {seconds['fp32']:.2f} s, bf16 {seconds['bf16']:.2f} s per image; ratio {result['ratio']:.2f}")


def forward_seconds(name: str, size: int, repetitions: int) -> dict[str, float]:
    """Median seconds per image in both precisions, measured in turn."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH["cpu"], size, size, 3), dtype=np.uint8)
    clips = {precision: FrozenCLIP(CLIPSource(name, "random", size), precision, CPU) for precision in PRECISIONS}
    found: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    for repetition in range(repetitions + 1):
        for precision, clip in clips.items():
            start = time.perf_counter()
            clip.forward(images)
            if repetition:  # the first one warms up
                found[precision].append((time.perf_counter() - start) / len(images))
    return {precision: statistics.median(seconds) for precision, seconds in found.items()}


def agreement(views: int) -> np.ndarray:
    """Adjusted Rand index of each view's labels."""
    scenes = open_dataset("scenes", None, "val", views)
    labels = []
    for precision in PRECISIONS:
        clip = FrozenCLIP(CLIPSource("tiny"), precision, CPU)
        images = [scenes.load(index)[0] for index in range(views)]
        images = [crop_image(image, whole(*image.shape[:2]), clip.image_size) for image in images]
        batches = [np.stack(images[start : start + BATCH["cpu"]]) for start in range(0, views, BATCH["cpu"])]
        dense = np.concatenate([clip.encode(batch).dense for batch in batches])
        everything = Split(("anything",), ("anything",))
        labels.append(Masker(everything, clip.grid, threshold=THRESHOLD)(dense, [None] * views)[0].astype(int))
    return np.array([adjusted_rand_index(a.ravel(), b.ravel()) for a, b in zip(*labels, strict=True)])


if __name__ == "__main__":
    main()
