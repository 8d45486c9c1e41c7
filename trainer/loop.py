"""The training loop, to be read top to bottom: cache -> batches -> student -> losses -> checkpoint."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from data_cache.content import Loaded, Texts
from data_cache.datasets.base import Dataset
from data_cache.devices import resolve_device
from data_cache.errors import InterruptError, UsageError, UserError, disk_errors
from data_cache.source import photographs
from data_cache.splits import Split
from data_cache.store import Cache
from trainer import checkpoint, ranks
from trainer.config import TrainConfig
from trainer.data import CachedTeacher, Stream, TeacherSource, ViewSet, batches, taught
from trainer.interrupt import interruptible
from trainer.launch import together
from trainer.losses import Taught, TeacherLoss
from trainer.memory import peak_memory
from trainer.resume import draw_apart, reopen_log, restore, resume_state
from trainer.segmenter import Segmenter, check_size, parameter_groups

LOG = "log.jsonl"
CHECKED = 16
"""Images whose hashes are compared at the start; all others are when they are first decoded."""


@dataclass(frozen=True)
class Material:
    """What a run trains from: the photographs, and the cache's answers about them."""

    dataset: Dataset
    split: Split
    loaded: Loaded
    texts: Texts
    size: int
    about: Mapping[str, Any]


class Learner(nn.Module):
    """Student and loss as one module, so that Fabric wraps both."""

    def __init__(self, config: TrainConfig, material: Material) -> None:
        super().__init__()
        text = torch.from_numpy(material.texts.features)
        self.segmenter = Segmenter(config.arch, config.encoder, config.encoder_weights, text.shape[1])
        self.loss = TeacherLoss(config, text[material.split.seen_index])

    def forward(self, images: UInt8[Tensor, "own 3 size size"], told: Callable[[], Taught]) -> dict[str, Tensor]:
        """The loss terms of a batch, in float32 whatever the student computes in.

        What the teacher `told` comes as a call: Fabric would round its CLS tokens to the student's precision.
        """
        features = self.segmenter(images)
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.float(), told())


def gather(config: TrainConfig) -> Material:
    """Open cache and dataset and check that they belong together.

    Raises:
        UserError, UsageError: no or an unfinished cache, photographs that are not those it was made from.

    """
    if config.cache is None:
        raise UsageError("--cache: a value is missing")
    cache = Cache(Path(config.cache))
    masks = cache.mask_name(config.masks)
    loaded = cache.load(masks)
    root = config.root or cache.attributes["recorded"]["root"]
    dataset, texts = photographs(cache, Path(root) if root else None), cache.texts()
    if not loaded.ok.any():
        raise UserError(f"{cache.path}: every image failed; see `info` and run `precompute` again")
    split = Split(dataset.classes, tuple(cache.mask_attributes(masks)["unseen"]))
    size = config.size or int(cache.fingerprint["clip"]["image_size"])
    origin = {
        "dataset": cache.fingerprint["dataset"],
        "clip": cache.fingerprint["clip"],
        "masks": cache.mask_attributes(masks),
        "prompts": {"name": texts.name, "templates": list(texts.templates)},
        "recorded": {
            "root": str(Path(root).absolute()) if root else None,
            "clip": cache.attributes["recorded"].get("clip"),
        },
    }
    return Material(dataset, split, loaded, texts, size, origin)


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    strict: bool = False,
    tell: Callable[[dict[str, float]], None] = lambda _: None,
    teacher: TeacherSource | None = None,
) -> dict[str, float]:
    """Train a student; returns the last logged line, and the most memory held. `tell` hears of every update's losses.

    Writes `out`/config.json, log.jsonl and step_N/. With `resume` it goes on from the newest checkpoint, bit for
    bit on CPU. `strict` compares all images with the cache before the first update, not some. `teacher` answers in
    place of the cache. With `config.devices` so many processes of their own train, and this one watches them.

    Raises:
        UserError: `out` holds another run, or a loss is no longer finite.
        UsageError: settings that cannot be had, a `teacher` for several processes.

    """
    if not resume and any(out.glob("step_*")):
        raise UsageError(f"--out {out}: holds a trained run; pass --resume to go on with it, or another --out")
    if config.devices == 1:
        return train_rank(config, out, resume, strict, tell, interruptible(), teacher)
    if teacher:
        raise UsageError(f"--online: trains in one process; leave --devices {config.devices} out")
    return together(resolve_device(config.device), config.devices, train_rank, (config, out, resume, strict), tell)


def train_rank(
    config: TrainConfig,
    out: Path,
    resume: bool,
    strict: bool,
    tell: Callable[[dict[str, float]], None],
    interrupts: AbstractContextManager[Callable[[], bool]],
    teacher: TeacherSource | None = None,
) -> dict[str, float]:
    """Train as one of `config.devices` processes, of which that of rank 0 alone writes."""
    material, writes = gather(config), ranks.rank() == 0
    torch.manual_seed(config.seed)
    fabric = _fabric(config)
    learner: Any = Learner(config, material)
    if ranks.count() > 1 and fabric.device.type == "cuda":
        learner = convert_sync_batchnorm(learner)
    check_size(learner.segmenter, config, material.size)
    groups = parameter_groups(
        learner, config.lr, config.head_lr, config.weight_decay, slow=learner.segmenter.network.encoder
    )
    peaks = [group["lr"] for group in groups]
    about = {**material.about, checkpoint.ONLINE: teacher is not None}
    card = checkpoint.card_of(config, material.split, material.size, about)
    learner, optimizer = fabric.setup(learner, torch.optim.AdamW(groups))
    draw_apart(config.seed)
    step = restore(out, learner.module, optimizer, card) if resume else 0
    teacher = teacher or CachedTeacher(material.loaded)
    photometric = config.seed if config.photometric else None
    views = ViewSet(material.dataset, material.split, material.loaded, material.size, photometric)
    checked = views.images if strict else views.images[:: max(1, len(views) // CHECKED)]
    for index in checked[ranks.rank() :: ranks.count()]:
        views.check_unchanged(int(index))
    stream = Stream(len(views), material.loaded.cls.shape[1], config.batch_size, config.seed)
    text = torch.from_numpy(material.texts.features)

    def save(step: int, card: dict[str, Any], kind: str = checkpoint.STEP) -> Path | None:
        state = resume_state(learner.module, optimizer)
        where = checkpoint.save(out, step, learner.module.segmenter, text, card, state, kind) if writes else None
        ranks.anyone(False)  # or another would end the run while this one still writes
        return where

    if writes:
        out.mkdir(parents=True, exist_ok=True)
        config.save(out / "config.json")
    log = reopen_log(out / LOG, step) if writes else nullcontext()
    start, line = time.perf_counter(), {}
    learner.train()
    room = "the newest checkpoint is kept: make room, and `train --resume` goes on"
    with disk_errors(out, room), log as file, interrupts as interrupted:
        for batch in batches(views, stream, step, config.iterations, config.workers):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, config)
            told = taught(teacher, batch, len(material.split.seen), fabric.device)
            terms = learner(batch.images.to(fabric.device, non_blocking=True), lambda told=told: told)
            # read back together: each by itself would stop a GPU
            losses = dict(zip(terms, torch.stack([value.detach() for value in terms.values()]).tolist(), strict=True))
            bad = not_finite(losses)
            if ranks.anyone(bad is not None):
                term = bad or "another process's"
                failure = {"term": term, "losses": {name: str(value) for name, value in losses.items()}}
                failure |= {name: ranks.gathered(getattr(batch, name)).tolist() for name in ("image", "view")}
                where = save(step + 1, card | {"failed": failure}, checkpoint.FAILED)
                raise UserError(
                    f"update {step + 1}: the loss is not finite (term: {term}); weights and batch are kept in {where}; "
                    "lower --lr in the config, or use 32-true"
                )
            optimizer.zero_grad()
            fabric.backward(terms["total"])
            if config.max_grad_norm:
                fabric.clip_gradients(learner, optimizer, max_norm=config.max_grad_norm, error_if_nonfinite=False)
            optimizer.step()
            step += 1

            line = {"step": step, "lr": optimizer.param_groups[0]["lr"], **losses}
            line["seconds"] = round(time.perf_counter() - start, 3)
            tell(line)
            if file and (step % config.log_every == 0 or step in (1, config.iterations)):
                file.write(json.dumps(line) + "\n")
                file.flush()
            stop = ranks.anyone(interrupted())
            if step % config.checkpoint_every == 0 or step == config.iterations or stop:
                save(step, card)
            if stop and step < config.iterations:
                raise InterruptError(
                    f"interrupted after update {step}, now saved; `train --out {out} --resume` goes on"
                )
    return line | {"peak_bytes": peak_memory(fabric.device)}


def schedule(step: int, config: TrainConfig) -> float:
    """Factor on the learning rates at update `step` (from 0): polynomial decay, times a linear warm-up."""
    decay = (1 - step / config.iterations) ** config.poly_power
    warm = config.warmup_updates
    return decay * ((step + 1) / warm if step < warm else 1.0)


def _fabric(config: TrainConfig) -> Fabric:
    device = resolve_device(config.device)
    kind = device.type
    auto = "bf16-mixed" if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    precision = auto if config.precision == "auto" else config.precision
    if ranks.count() == 1:
        devices = [device.index] if device.index is not None and kind == "cuda" else 1
        return Fabric(accelerator=kind, devices=devices, precision=precision)
    # a batch without any label leaves the adapter out of the loss
    # whatever a cluster's own variables say, `together` started these processes
    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), find_unused_parameters=True)
    fabric = Fabric(accelerator=kind, devices=ranks.count(), strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def not_finite(losses: Mapping[str, float]) -> str | None:
    """The last term that is not finite, if any: `total` and `pixel` come before those they are made of."""
    bad = [name for name, value in losses.items() if name != "entropy" and not math.isfinite(value)]
    return bad[-1] if bad else None
