"""How much of `precompute` is CLIP: its images a second against a bare forward loop over tensors in memory.

The peer has the same model, precision, batch size, memory format and threads, and nothing to read, cluster or write.
Both run in one process, in turn. The ratio is precompute's throughput as a share of the loop's; `cluster` is the share
of the time of all askers that clustering and fusion took. Loading CLIP is in neither; creating the cache and starting
Dask are in ours. All figures are of the run whose ratio is the median.
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

from benchmarks.photographs import UNSEEN, draw_photographs
from data_cache.views import replay_image, whole
from pipeline.clip import DTYPES, FrozenCLIP
from pipeline.precompute import Plan, Settings, Summary, execute, plan
from pipeline.weights import CLIPSource


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
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        root = draw_photographs(Path(folder) / "photographs", asked.images)
        clip = CLIPSource(asked.clip, "random", asked.size)
        for repetition in range(asked.repetitions):
            settings = Settings("folder", Path(folder) / f"{repetition}.zarr", root, unseen=UNSEEN, prompts="single")
            given = {"clip": clip, "precision": asked.precision, "device": asked.device}
            work = plan(Settings(**vars(settings) | given | {"dense": asked.dense, "shard": asked.shard}))
            found.append(compared(work))
            print(f"precompute / forward: {found[-1]['ratio']:.3f}", file=sys.stderr)
    result = sorted(found, key=lambda one: one["ratio"])[len(found) // 2] | {"all": [one["ratio"] for one in found]}
    result |= {"precision": work.job.precision, "device": work.job.device, "threads": torch.get_num_threads()}
    if asked.json:
        print(json.dumps(result))
        return
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in result["stages"].items())
    print(f"{asked.images} images, {work.job.precision}: {result['ours']:.2f} images/s; stages: {stages}")
    share = "not measured" if result["cluster"] is None else f"{100 * result['cluster']:.1f} % of the time an image"
    print(f"clustering {share}; ratio {result['ratio']:.3f}")


def compared(work: Plan) -> dict[str, object]:
    """Both once: seconds, stages, and the ratio."""
    clip = work.job.encoder.clip
    forward(clip, clip.batch, clip.image_size)
    before = forward(clip, work.images, clip.image_size)
    done: Summary = execute(work)
    after = forward(clip, work.images, clip.image_size)
    bare = (before + after) / 2  # a machine that slows down or speeds up in between favours neither
    return {
        "ratio": bare / done.seconds,
        "ours": done.encoded / done.seconds,
        "forward": done.encoded / bare,
        # a GPU does it in its queue, where no clock of ours is
        "cluster": None if work.job.encoder.masker.queues else done.stages["cluster"] / done.seconds / clip.askers,
        "stages": done.stages,
    }


@torch.inference_mode()
def forward(clip: FrozenCLIP, images: int, size: int) -> float:
    """Seconds of CLIP's vision tower alone on ready tensors."""
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    one = torch.from_numpy(replay_image(picture, whole(480, 640), size)).permute(2, 0, 1).float() / 255
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
