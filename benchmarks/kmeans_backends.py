"""Clustering and fusion: batches on a torch device against FAISS, one image at a time on one thread.

32 x 32 tokens of 512 channels, all ignored, in 32 noisy regions: the size of one view of ViT-B/16 at 512 px. Both
process the same views, alternating; the ratio is the seconds of FAISS over those of torch. `--kmeans auto` is based
on it: FAISS on a CPU, torch on a GPU.
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

from data_cache.splits import Split
from data_cache.system.devices import resolve_device
from pipeline.masks.fusion import adjusted_rand_index
from pipeline.masks.masker import Masker

GRID, CHANNELS, REGIONS = (32, 32), 512, 32


def main() -> None:
    """Time both and compare their labels."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = compare(resolve_device(arguments.device), arguments.views, arguments.repetitions)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{result['device']}: {result['faiss_ms']:.2f} ms per view by FAISS, {result['torch_ms']:.2f} by torch")
    print(f"adjusted Rand index {result['rand_index']:.4f}; ratio {result['ratio']:.2f}")


def compare(device: torch.device, views: int, repetitions: int) -> dict[str, float | str]:
    """Median milliseconds per view of both."""
    dense = torch.from_numpy(np.stack([tokens(seed) for seed in range(views)])).to(device)
    everything = Split(("anything",), ("anything",))
    maskers = {kmeans: Masker(everything, GRID, kmeans=kmeans, device=str(device)) for kmeans in ("faiss", "torch")}
    found: dict[str, list[float]] = {kmeans: [] for kmeans in maskers}
    labels = {}
    for repetition in range(repetitions + 1):
        for kmeans, masker in maskers.items():
            given = dense.cpu() if kmeans == "faiss" else dense
            start = time.perf_counter()
            labels[kmeans] = masker(given, [None] * views)[0].astype(int)
            if repetition:
                found[kmeans].append((time.perf_counter() - start) / views * 1e3)
    index = [adjusted_rand_index(a.ravel(), b.ravel()) for a, b in zip(labels["faiss"], labels["torch"], strict=True)]
    faiss_ms, torch_ms = (statistics.median(found[kmeans]) for kmeans in ("faiss", "torch"))
    return {
        "ratio": faiss_ms / torch_ms,
        "faiss_ms": faiss_ms,
        "torch_ms": torch_ms,
        "rand_index": float(np.mean(index)),
        "device": str(device),
    }


def tokens(seed: int) -> np.ndarray:
    """Dense tokens of regions that take k-means several updates to find."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    centers = rng.uniform(0, GRID[0], (REGIONS, 2))
    region = ((y[..., None] - centers[:, 0]) ** 2 + (x[..., None] - centers[:, 1]) ** 2).argmin(axis=2)
    meaning = rng.standard_normal((REGIONS, CHANNELS))
    return (meaning[region] + 1.5 * rng.standard_normal((*GRID, CHANNELS))).astype(np.float16)


if __name__ == "__main__":
    main()
