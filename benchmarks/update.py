"""Where the time of an update goes: data, student, loss, backward pass and optimizer.

The demo's student at its own settings, and the paper's three at the paper's (on a CPU: a batch of 2 at 128 px), on
synthetic images with random weights. The ratio is the seconds of the loss, forward and backward, as autograd
computes it image by image from full-resolution logits, over those of the batched loss, at the demo's settings. For the
whole update, the peer also has segmentation_models_pytorch's own SegFormer and AdamW as PyTorch runs it by default.

    python benchmarks/update.py [--batch N] [--size PX] [--students NAME,...] [--compile] [--one-thread] [--json]
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.synthetic_images import UNSEEN, draw_images
from data_cache.content import CachedArrays
from data_cache.datasets import open_dataset
from data_cache.layout import reserved_label
from data_cache.splits import make_split
from data_cache.system.async_copy import to_device
from experiments.demo_config import STUDENT
from experiments.presets import STUDENTS
from trainer.config import TrainConfig
from trainer.data import Batch, ViewDataset
from trainer.losses.pixel import pixel_logits
from trainer.losses.pixel_terms import IGNORE
from trainer.losses.plm import Classifiers
from trainer.losses.total import TeacherLoss
from trainer.optimizer import create_optimizer
from trainer.sampler import Draw
from trainer.students.network import StudentNetwork
from trainer.teacher import teacher_targets

DEMO = "demo"
SEEN, CHANNELS, CLUSTERS = 156, 512, 15
"""Of COCO and ViT-B/16; pseudo labels per image."""
SEEN_DEMO, CHANNELS_DEMO, CLUSTERS_DEMO = 13, 128, 2
"""Of the demo's scenes and its CLIP, which have 1.9 pseudo labels per image."""
PHASES = ("data", "student", "loss", "loss_backward", "student_backward", "optimizer")


def main() -> None:
    """Print the figures of each student as soon as they are there, the demo's first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, help="Images per update of the paper's students.")
    parser.add_argument("--size", type=int, help="Pixels of their input's side.")
    parser.add_argument("--students", default=",".join((DEMO, *list(STUDENTS)[:3])))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="Compile the students, except for the ratio.")
    parser.add_argument("--one-thread", action="store_true", help="CPU seconds of one thread, on a busy machine.")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.one_thread:
        torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    batch, size = arguments.batch or (16 if on_gpu else 2), arguments.size or (512 if on_gpu else 128)
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "students": {}}
    for name in arguments.students.split(","):
        config = replace(student_config(name, batch, size), compile=arguments.compile)
        repetitions = arguments.repetitions if name == DEMO or on_gpu else max(1, arguments.repetitions // 5)
        result["students"][name] = figures = measured(config, name == DEMO, device, repetitions)
        print(f"{name}, {config.batch_size} x {config.size} px: {rounded(figures)}", file=sys.stderr, flush=True)
    if DEMO in result["students"]:
        for stride in (STUDENT.loss_stride, 1):
            figures = compared(replace(STUDENT, loss_stride=stride), device, arguments.repetitions)
            result |= {f"{key}_stride_{stride}": value for key, value in figures.items()}
            print(f"demo, stride {stride}: {rounded(figures)}", file=sys.stderr, flush=True)
        result["ratio"] = result[f"ratio_stride_{STUDENT.loss_stride}"]
    print(json.dumps(result) if arguments.json else f"ratio {result.get('ratio')}")


def student_config(name: str, batch: int, size: int) -> TrainConfig:
    """The demo's settings, or the paper's without pretrained weights."""
    if name == DEMO:
        return STUDENT
    options = {**STUDENTS[name], "encoder": STUDENTS[name]["encoder"].partition(".")[0]}
    return TrainConfig(**options, encoder_weights="none", batch_size=batch, size=size, workers=0)


class Update:
    """One training update, phase by phase; `plain` is the peer."""

    def __init__(
        self, config: TrainConfig, demo: bool, device: torch.device, views: ViewDataset, plain: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.config, self.device, self.views = config, device, views
        seen, channels, clusters = (SEEN_DEMO, CHANNELS_DEMO, CLUSTERS_DEMO) if demo else (SEEN, CHANNELS, CLUSTERS)
        with patch("trainer.students.network.accelerate", lambda network: network) if plain else nullcontext():
            self.network = StudentNetwork(config.arch, config.encoder, "none", channels).to(device).train()
        if config.compile:
            self.network.compile(dynamic=False)
        self.loss = TeacherLoss(config, torch.randn(seen, channels)).to(device)
        modules = torch.nn.ModuleList([self.network, self.loss])
        self.optimizer = create_optimizer(modules, self.network.network.encoder, config)
        if plain:
            self.optimizer = torch.optim.AdamW([{**group, "fused": None} for group in self.optimizer.param_groups])
        rng, batch, tokens = np.random.default_rng(0), config.batch_size, config.size // 8
        target = rng.integers(IGNORE, seen + clusters, (batch, tokens, tokens))
        label = np.where(target < seen, target, IGNORE).repeat(8, axis=1).repeat(8, axis=2).astype(np.int16)
        pseudo_label = np.where(target < seen, reserved_label("uint8"), target - seen).astype(np.uint8)
        cls, number = rng.normal(size=(batch, channels)).astype(np.float16), torch.arange(batch)
        self.num_seen, self.teacher = seen, lambda _image, _view: (cls, pseudo_label)
        self.labels = (torch.from_numpy(label), number, torch.zeros_like(number))
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")

    def __call__(self, phase: Callable[[str], Any]) -> None:
        """Run it; `phase` gives a context for each phase."""
        with phase("data"):
            draws = [Draw(number % len(self.views), 0, number) for number in range(self.config.batch_size)]
            batch = Batch(torch.stack([self.views[draw][0] for draw in draws]), *self.labels)
            images = to_device(batch.images, self.device)
            targets = teacher_targets(self.teacher, batch, self.num_seen, self.device)
        with phase("student"), self.autocast:
            features = self.network(images)
        with phase("loss"):
            total = self.loss(features.float(), targets)["total"]
        with phase("loss_backward"):
            parameters = [p for p in self.loss.parameters() if p.requires_grad]
            gradient, *others = torch.autograd.grad(total, [features, *parameters], allow_unused=True)
            for parameter, own in zip(parameters, others, strict=True):
                parameter.grad = own
        with phase("student_backward"):
            features.backward(gradient)
        with phase("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()


@contextmanager
def prepared(config: TrainConfig, demo: bool, device: torch.device) -> Iterator[Update]:
    """An update on images of 640 x 480 pixels."""
    count = 16
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_dataset("folder", draw_images(Path(folder) / "dataset", count), "train")
        digests = [tuple(dataset.digest(index)) for index in range(count)]
        box = np.tile(np.array([0, 0, 480, 640]), (count, 1, 1))
        one, flat = np.zeros((count, 1), bool), np.zeros((count, 1))
        loaded = CachedArrays(dataset.ids, digests, np.ones(count, bool), box, one, flat, flat, flat)
        split = make_split("folder", dataset.classes, UNSEEN)
        views = ViewDataset(dataset, split, loaded, config.size, config.seed if config.photometric else None)
        yield Update(config, demo, device, views)


def measured(config: TrainConfig, demo: bool, device: torch.device, repetitions: int) -> dict[str, Any]:
    """Median seconds of each phase, the share of the loss, kernels, and peak GPU memory."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with prepared(config, demo, device) as update:
        seconds = median_seconds(update, device, repetitions)
        kernels = count_kernels(update) if device.type == "cuda" else None
    total = sum(seconds.values())
    return {
        "seconds": total,
        **{name: seconds[name] for name in ("data", "student", "loss")},
        "backward": seconds["loss_backward"] + seconds["student_backward"],
        "optimizer": seconds["optimizer"],
        "loss_share": (seconds["loss"] + seconds["loss_backward"]) / total,
        "kernels": kernels,
        "gpu_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def compared(config: TrainConfig, device: torch.device, repetitions: int) -> dict[str, float]:
    """The seconds of the peer over those of the demo's update, in turns: the loss, and all but the data."""
    times: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with prepared(config, True, device) as update:
        peer = Update(config, True, device, update.views, plain=True)
        for _ in range(3):
            with patch("trainer.losses.total.pixel_losses", plain_pixel_losses):
                times[True].append(median_seconds(peer, device, repetitions))
            times[False].append(median_seconds(update, device, repetitions))
    loss, whole = (
        {plain: float(np.median([sum(one[name] for name in names) for one in runs])) for plain, runs in times.items()}
        for names in (("loss", "loss_backward"), PHASES[1:])
    )
    return {"ratio": loss[True] / loss[False], "update": whole[True] / whole[False]}


def median_seconds(update: Update, device: torch.device, repetitions: int) -> dict[str, float]:
    """Median seconds of each phase."""
    runs: list[Counter[str]] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = now(device)
        yield
        runs[-1][name] += now(device) - start

    for _ in range(repetitions + 1):
        runs.append(Counter())
        update(phase)
    return {name: float(np.median([run[name] for run in runs[1:]])) for name in PHASES}


def now(device: torch.device) -> float:
    """The time at which all queued work is done; of one thread on a CPU, the time it has used."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if torch.get_num_threads() == 1 and device.type == "cpu" else time.perf_counter()


def count_kernels(update: Update) -> int:
    """Kernels that an update launches on a GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        update(nullcontext)
    # the profile also has what the host calls to launch them, and copies
    launched = (event for event in profile.key_averages() if event.device_type == DeviceType.CUDA)
    return sum(event.count for event in launched if not event.key.startswith(("Memcpy", "Memset")))


def rounded(figures: Mapping[str, Any]) -> str:
    """One line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if value is not None)


def plain_pixel_losses(
    features: Float[Tensor, "image channel y x"], classifiers: Classifiers, num_seen: int, config: TrainConfig
) -> dict[str, Tensor]:
    """The peer: image by image, recomputed in the backward pass, with autograd over full-resolution logits."""
    stride = config.loss_stride
    targets = classifiers.target[:, stride // 2 :: stride, stride // 2 :: stride]
    weights = classifiers.weight.expand(len(features), -1, -1)
    present = sum(t[(t != IGNORE) & (t < num_seen)].unique().numel() for t in targets)
    sums = torch.zeros(3, device=features.device)
    for image, weight, target in zip(features, weights, targets, strict=True):
        inputs = (image, weight, target, num_seen, config)
        sums = sums + checkpoint(plain_sums, *inputs, use_reentrant=False, preserve_rng_state=False)
    labelled = (targets != IGNORE).sum().clamp(min=1)
    return {"ce": sums[0] / labelled, "focal": sums[1] / max(present, 1), "dice": sums[2] / max(present, 1)}


def plain_sums(features: Tensor, weight: Tensor, target: Tensor, num_seen: int, config: TrainConfig) -> Tensor:
    """Cross-entropy, focal and dice of one image."""
    logits = pixel_logits(features, weight, config.logits, config.tau)[None]
    logits = F.interpolate(logits, target.shape, mode="bilinear", align_corners=False)
    ce = F.cross_entropy(logits, target[None], ignore_index=IGNORE, reduction="sum")
    seen, flat = logits[0, :num_seen].flatten(1), target.flatten()
    positive = (flat == torch.arange(num_seen, device=flat.device)[:, None]).float()
    probability = seen.sigmoid()
    right = probability * positive + (1 - probability) * (1 - positive)
    alpha = 0.25 * positive + 0.75 * (1 - positive)
    bce = F.binary_cross_entropy_with_logits(seen, positive, reduction="none")
    focal = (alpha * (1 - right) ** 2 * bce).sum() / seen.shape[1]
    chosen = positive.any(dim=1)
    probability, positive = probability[chosen], positive[chosen]
    overlap = (probability * positive).sum(dim=1)
    dice = (1 - (2 * overlap + 1) / (probability.sum(dim=1) + positive.sum(dim=1) + 1)).sum()
    return torch.stack([ce, focal, dice])


if __name__ == "__main__":
    main()
