"""What a dense recipe costs: seconds of CLIP with it over those with the paper's own output.

ViT-B/16 at 512 px with random weights, whose values do not matter for the time. Recipes take turns, and the median of
the rounds counts. The ratio is that of the slowest recipe.

    python benchmarks/dense_recipes.py [--json]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.system.devices import resolve_device
from pipeline.teacher.clip import FrozenCLIP, resolve_precision
from pipeline.teacher.recipes import OUTPUT, RECIPES
from pipeline.teacher.weights import CLIPSource


def main() -> None:
    """Measure every recipe in turn and print the ratios as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    device, source = resolve_device(arguments.device), CLIPSource(arguments.clip, "random", arguments.size)
    precision = resolve_precision(arguments.precision, device)
    clips = {recipe: FrozenCLIP(source, precision, device, recipe=recipe) for recipe in RECIPES}
    batch = clips[OUTPUT].batch
    images = np.random.default_rng(0).integers(0, 256, (batch, arguments.size, arguments.size, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {recipe: [] for recipe in RECIPES}
    for number in range(arguments.rounds + 1):
        for recipe, clip in clips.items():
            start = time.perf_counter()
            clip.encode(images)
            if number:  # the first round allocates memory
                seconds[recipe].append(time.perf_counter() - start)
    result: dict[str, object] = {"device": str(device), "precision": precision, "torch": torch.__version__}
    result |= {
        recipe: median(own / output for own, output in zip(seconds[recipe], seconds[OUTPUT], strict=True))
        for recipe in RECIPES
    }
    result["ratio"] = max(result[recipe] for recipe in RECIPES)
    if arguments.json:
        print(json.dumps(result))
        return
    for recipe in RECIPES:
        print(f"{recipe}: {1000 * median(seconds[recipe]) / batch:.0f} ms per image, ratio {result[recipe]:.3f}")
    print(f"ratio {result['ratio']:.3f}")


if __name__ == "__main__":
    main()
