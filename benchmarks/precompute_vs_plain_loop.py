"""`precompute` against the loop one would otherwise write, with the same images, architecture and threads.

The peer reads one image at a time with PIL, runs CLIP in fp32, clusters the ignored tokens with scikit-learn's KMeans
(as many clusters as the paper's two windows have centers, 10 iterations, one start) and saves tokens and labels with
`np.save`. It does less: no fusion, no records that survive a kill, no checks. The two alternate, starting and ending
with the loop. The ratio is the loop's seconds over ours, in the precision that `precompute` picks on this machine;
`ratio_fp32` is the same with both in fp32.

    uv run --group benchmarks python benchmarks/precompute_vs_plain_loop.py
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.cluster import KMeans

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synthetic_images import CLASSES, UNSEEN, draw_images
from data_cache.splits import Split
from pipeline.config import PrecomputeConfig
from pipeline.masks.kmeans import WINDOWS
from pipeline.masks.masker import ignored_tokens
from pipeline.plan import plan
from pipeline.precompute import execute
from pipeline.teacher.clip import FrozenCLIP, resolve_precision
from pipeline.teacher.weights import CLIPSource

CPU = torch.device("cpu")


def main() -> None:
    """Run both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--precision", default="auto", help="Precision of precompute; the loop uses fp32.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    clip = {"clip": arguments.clip, "clip_weights": "random", "image_size": arguments.size}
    with tempfile.TemporaryDirectory() as folder:
        root = draw_images(Path(folder) / "dataset", arguments.images)
        theirs = FrozenCLIP(CLIPSource(*clip.values()), "fp32", torch.device("cpu"))
        theirs.encode(np.zeros((1, arguments.size, arguments.size, 3), np.uint8))
        ours, plain = {}, [plain_loop(theirs, root, Path(folder) / "plain")]
        for precision in dict.fromkeys((resolve_precision(arguments.precision, CPU), "fp32")):
            given = {**clip, "precision": precision, "device": "cpu", "shard": 8, "prompts": "single"}
            work = plan(PrecomputeConfig("folder", Path(folder) / f"{precision}.zarr", root, unseen=UNSEEN, **given))
            work.job.encoder.clip.encode(np.zeros((1, arguments.size, arguments.size, 3), np.uint8))
            ours[precision] = execute(work).seconds
            plain.append(plain_loop(theirs, root, Path(folder) / f"after {precision}"))
    ratios = [(a + b) / 2 / seconds for seconds, a, b in zip(ours.values(), plain, plain[1:], strict=False)]
    result = {
        "ratio": ratios[0],
        "ratio_fp32": ratios[-1],
        "ours": ours,
        "plain_loop": plain,
        "images": arguments.images,
    }
    result["threads"] = torch.get_num_threads()
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{arguments.images} images, seconds: ours {ours}, the plain loop in fp32 before, between and after {plain}")
    print(f"both in fp32: {ratios[-1]:.2f}; ratio {ratios[0]:.2f}")


def plain_loop(clip: FrozenCLIP, root: Path, out: Path) -> float:
    """Run the loop and return its seconds."""
    out.mkdir()
    split, size = Split(CLASSES, (UNSEEN,)), clip.image_size
    start = time.perf_counter()
    for file in sorted((root / "images").iterdir()):
        image = Image.open(file).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        label = Image.open(root / f"labels/{file.stem}.png").resize((size, size), Image.Resampling.NEAREST)
        features = clip.encode(np.array(image)[None])
        ignored = ignored_tokens(np.asarray(label), split, clip.grid)
        points = features.dense[0][ignored].astype(np.float32)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        labels = []
        for window in WINDOWS:
            clusters = min(len(points), -(-len(points) // window**2))
            if clusters:
                labels.append(KMeans(clusters, n_init=1, max_iter=10, random_state=0).fit_predict(points))
        np.save(out / f"{file.stem}.cls.npy", features.cls[0])
        np.save(out / f"{file.stem}.dense.npy", features.dense[0])
        np.save(out / f"{file.stem}.labels.npy", np.stack(labels) if labels else np.zeros((0, 0), int))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
