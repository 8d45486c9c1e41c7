"""Text features of COCO prompts: ours, without the padding, against open_clip's own encode_text.

Prints one line per repetition and the median ratio last (`--json`: an object with "ratio"); random weights, CPU.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.class_list import class_lists
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.weights import CLIPSource


def main() -> None:
    """Time both on the same prompts, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    clip = FrozenCLIP(CLIPSource(arguments.clip, "random"), "fp32", torch.device("cpu"))
    names, templates = class_lists()["coco"].classes[-arguments.classes :], Prompts("zegclip15").templates
    ratios, worst = [], 0.0
    for _ in range(arguments.repetitions):
        start = time.perf_counter()
        ours = clip.encode_text(names, templates)
        middle = time.perf_counter()
        theirs = peer(clip, names, templates)
        ratios.append((time.perf_counter() - middle) / (middle - start))
        worst = max(worst, float(abs(ours - theirs).max()))
        print(f"open_clip's time / ours: {ratios[-1]:.2f}", file=sys.stderr)
    ratio = statistics.median(ratios)
    result = {"ratio": ratio, "largest_difference": worst, "prompts": len(names) * len(templates)}
    print(json.dumps(result) if arguments.json else f"ratio {ratio:.2f} (largest difference {worst:.1e})")


@torch.inference_mode()
def peer(clip: FrozenCLIP, names: tuple[str, ...], templates: tuple[str, ...]) -> "torch.Tensor":
    """The same features from open_clip's encode_text on prompts padded to the full context."""
    rows = []
    for name in names:
        tokens = clip.tokenizer([template.format(name) for template in templates])
        rows.append(torch.nn.functional.normalize(clip.model.encode_text(tokens, normalize=True).mean(0), dim=0))
    return torch.stack(rows).numpy()


if __name__ == "__main__":
    main()
