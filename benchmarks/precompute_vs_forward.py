"""How much of `precompute` is CLIP: its images/s against a bare forward loop over tensors in memory.

The peer has the same model, precision, batch size, memory format and threads, and nothing to read, cluster or write.
Both run in one process, alternating. The ratio is precompute's throughput over the loop's; `cluster` is the share of
clustering and fusion in the time of all encoding threads. Loading CLIP counts for neither side; creating the cache and
starting Dask count for `precompute`. All figures are from the run with the median ratio.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synthetic_images import UNSEEN, draw_images
from data_cache.sample import crop_image
from data_cache.views import whole
from pipeline.config import PrecomputeConfig
from pipeline.plan import Plan, plan
from pipeline.precompute import Summary, execute
from pipeline.teacher.clip import DTYPES, FrozenCLIP


def main() -> None:
    """Run both, in turn, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", default="ViT-B-16-quickgelu")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dense", default="float16")
    parser.add_argument("--shard", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = draw_images(Path(folder) / "dataset", arguments.images)
        options = {"clip": arguments.clip, "clip_weights": "random", "image_size": arguments.size, "prompts": "single"}
        options |= {name: getattr(arguments, name) for name in ("precision", "device", "dense", "shard")}
        for repetition in range(arguments.repetitions):
            cache = Path(folder) / f"{repetition}.zarr"
            work = plan(PrecomputeConfig("folder", cache, root, unseen=UNSEEN, **options))
            found.append(compared(work))
            print(f"precompute / forward: {found[-1]['ratio']:.3f}", file=sys.stderr)
    result = sorted(found, key=lambda one: one["ratio"])[len(found) // 2] | {"all": [one["ratio"] for one in found]}
    result |= {"precision": work.job.precision, "device": work.job.masker.device, "threads": torch.get_num_threads()}
    if arguments.json:
        print(json.dumps(result))
        return
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result["stages"].items())
    print(f"{arguments.images} images, {work.job.precision}: {result['ours']:.2f} images/s; stages: {stages}")
    share = "not measured" if result["cluster"] is None else f"{100 * result['cluster']:.1f} % of the time per image"
    print(f"clustering {share}; ratio {result['ratio']:.3f}")


def compared(work: Plan) -> dict[str, object]:
    """Both once: seconds, stages, and the ratio."""
    clip = work.job.encoder.clip
    slots = clip.max_concurrent_batches
    forward(clip, clip.batch, clip.image_size)
    before = forward(clip, work.images, clip.image_size)
    done: Summary = execute(work)
    after = forward(clip, work.images, clip.image_size)
    bare = (before + after) / 2  # a machine that slows down or speeds up in between favors neither
    return {
        "ratio": bare / done.seconds,
        "ours": done.encoded / done.seconds,
        "forward": done.encoded / bare,
        # a GPU clusters in its queue, where our clock does not reach
        "cluster": None if work.job.encoder.masker.asynchronous else done.stages["cluster"] / done.seconds / slots,
        "stages": done.stages,
    }


@torch.inference_mode()
def forward(clip: FrozenCLIP, images: int, size: int) -> float:
    """Seconds of CLIP's vision tower alone on ready tensors."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    one = torch.from_numpy(crop_image(picture, whole(480, 640), size)).permute(2, 0, 1).float() / 255
    batch = clip.batch
    pixels = one.expand(batch, -1, -1, -1).to(clip.device, DTYPES[clip.precision])
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    start = time.perf_counter()
    for first in range(0, images, batch):
        clip.visual(pixels[: images - first])
    if clip.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
