"""Trains an encoder with all labels of the *seen* classes and without CLIP, for students that begin pretrained.

The paper's students begin from ImageNet. A drawn world has no ImageNet, so this is its counterpart: SegFormer with a
linear head and cross-entropy over seen classes; pixels of unseen classes and void are ignored. The scenes are of the
split `captioned`, which no student trains on. Writes an encoder's state dict for `--encoder-weights` or `ablate
--start`.

    python benchmarks/supervised_start.py --world crowd

Prints the mIoU of the seen classes on `tune`, and last its ratio to that before training (`--json`: an object with
"ratio").
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int, UInt8
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from data_cache.datasets import WORLDS
from data_cache.datasets.worlds import Scenes, World
from data_cache.sample import crop_image, crop_label
from data_cache.splits import Split, make_split
from data_cache.system.atomic import atomic_write
from data_cache.views import whole
from trainer.metrics import ConfusionMatrix, metrics
from trainer.students.network import StudentNetwork

Batch = tuple[UInt8[Tensor, "batch 3 y x"], Int[Tensor, "batch y x"]]
IGNORED = -1


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", choices=WORLDS, default="crowd")
    parser.add_argument("--encoder", default="mit_b0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=2500)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tested", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/encoder.safetensors"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    rng, start = np.random.default_rng(0), time.perf_counter()
    world: World = WORLDS[arguments.world]
    split = make_split(world.name, world.classes, None)
    images, targets = load(Scenes(world, "captioned", arguments.scenes), split, arguments.size)
    tested = load(Scenes(world, "tune", arguments.tested), split, arguments.size)
    network = StudentNetwork("segformer", arguments.encoder, "none", channels=len(split.seen))
    before = seen_miou(network, tested, len(split.seen))
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.lr, weight_decay=0.01, fused=True)
    for update in range(arguments.updates):
        for group in optimizer.param_groups:
            warm = min(1, (update + 1) / 50)
            group["lr"] = arguments.lr * warm * 0.5 * (1 + math.cos(math.pi * update / arguments.updates))
        chosen = torch.from_numpy(rng.choice(len(images), arguments.batch_size, replace=False))
        mirror = [3] if rng.integers(2) else []
        logits = network(images[chosen].flip(mirror))
        loss = F.cross_entropy(
            logits, at_stride(targets[chosen].flip([2] if mirror else []), network), ignore_index=IGNORED
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if not arguments.json and (update + 1) % 50 == 0:
            print(f"{update + 1}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    found = seen_miou(network, tested, len(split.seen))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(arguments.out) as draft:
        save_file({name: value.contiguous() for name, value in network.network.encoder.state_dict().items()}, draft)
    ratio = found / max(before, 1e-9)
    if arguments.json:
        print(json.dumps({"ratio": ratio, "mIoU(S)": found, "before": before}))
    else:
        print(f"mIoU(S) {100 * found:.1f} % of {arguments.tested} scenes, before training {100 * before:.1f} %")
        print(f"ratio {ratio:.2f}")


def load(scenes: Scenes, split: Split, size: int) -> Batch:
    """Images at the input size, and ranks among the seen classes (-1 for all other pixels)."""
    images, targets = [], []
    for image, label in map(scenes.uncached().load, range(len(scenes))):
        view = whole(*label.shape)
        images.append(torch.from_numpy(crop_image(image, view, size)).permute(2, 0, 1))
        targets.append(torch.from_numpy(split.seen_target(crop_label(label, view, size))))
    return torch.stack(images), torch.stack(targets).long()


def at_stride(targets: Int[Tensor, "batch y x"], network: StudentNetwork) -> Int[Tensor, "batch y x"]:
    """The targets at the centers of the network's cells."""
    return targets[:, network.stride // 2 :: network.stride, network.stride // 2 :: network.stride]


@torch.no_grad()
def seen_miou(network: StudentNetwork, batch: Batch, classes: int) -> float:
    """The mIoU of the seen classes at the network's stride."""
    network.eval()
    matrix = ConfusionMatrix(classes)
    for images, targets in zip(*(part.split(10) for part in batch), strict=True):
        label = at_stride(targets, network)
        matrix.update(np.where(label < 0, 255, label).astype(np.uint8), network(images).argmax(dim=1).numpy())
    network.train()
    return metrics(matrix.counts, np.empty(0, np.int64)).miou_seen


if __name__ == "__main__":
    main()
