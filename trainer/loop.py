"""The training loop, readable top to bottom: cache -> batches -> student -> losses -> checkpoint."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.plugins.precision import Precision
from lightning_fabric.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from data_cache.callbacks import Log, OnUpdate, ignore
from data_cache.errors import InterruptError, UsageError, UserError
from data_cache.system.async_copy import AsyncHostCopy, to_device
from data_cache.system.devices import compile_errors, resolve_device
from trainer import checkpoint
from trainer.card import ONLINE, make_card
from trainer.checkpoint_folders import FAILED, STEP, checkpoints
from trainer.config import TrainConfig
from trainer.data import Batch, TrainingData, ViewDataset, load_training_data
from trainer.distributed import ranks
from trainer.distributed.launch import launch_ranks
from trainer.interrupt import interruptible
from trainer.loader import batches
from trainer.loggers import check_logger
from trainer.losses.total import TeacherLoss, TeacherTargets
from trainer.memory import check_memory, check_processes, peak_memory
from trainer.monitor import monitored
from trainer.optimizer import create_optimizer, step_if_finite
from trainer.resume import restore, resume_state, seed_rank
from trainer.run import LOG, exclusive_run, repair_log
from trainer.sampler import Stream
from trainer.students.network import StudentNetwork, check_size
from trainer.teacher import TeacherSource, cached_teacher, teacher_targets
from trainer.validation import DrawPredictions, Validation

NUM_CHECKED = 16
"""How many images are hashed and compared with the cache at the start; the others are when they are first decoded."""
ADVICE = "lower --lr, or set precision to 32-true in --config"
"""What helps against numbers that are not finite."""


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    strict: bool = False,
    on_update: OnUpdate = ignore,
    teacher: TeacherSource | None = None,
    log: Log = ignore,
    draw: DrawPredictions | None = None,
) -> dict[str, float]:
    """Train a student and write config.json, log.jsonl and step_N/ into the folder `out`, which is locked meanwhile.

    With `config.devices` > 1, that many processes train and this one watches them.

    Args:
        config: the settings.
        out: the run's folder.
        resume: continue from the newest checkpoint, bit for bit on a CPU.
        strict: compare all images with the cache before the first update, not just a sample.
        on_update: receives the losses of every update.
        teacher: replaces the cache as the source of CLS tokens and pseudo labels.
        log: receives a message if a damaged log was repaired, or if dense tokens are read first.
        draw: draws the pictures of `config.log_images`. With several processes, it must be picklable.

    Returns:
        The losses of the last update, and the peak memory (`peak_bytes`).

    Raises:
        UserError: `out` holds another run, or a loss is not finite.
        UsageError: invalid settings, or a `teacher` for several processes.

    """
    if teacher and config.devices > 1:
        raise UsageError(f"--online: trains in one process; omit --devices {config.devices}")
    if teacher and config.transductive:
        raise UsageError("--online: pseudo labels get their names from the cache; omit --transductive")
    check_processes(config)
    check_logger(config.log)
    with exclusive_run(out):
        if resume:
            if not checkpoints(out):
                raise UserError(f"--resume: no checkpoint in {out} yet; omit --resume to start from scratch")
            repair_log(out / LOG, log)
        elif checkpoints(out):
            raise UsageError(f"--out {out}: contains a trained run; pass --resume to continue it, or another --out")
        if config.transductive:
            log("--transductive: reads all dense tokens of the cache to name pseudo labels before the first update")
        if config.devices == 1:
            return train_rank(config, out, resume, strict, draw, on_update, interruptible(), teacher)
        device, arguments = resolve_device(config.device), (config, out, resume, strict, draw)
        return launch_ranks(device, config.devices, train_rank, arguments, on_update)


def train_rank(
    config: TrainConfig,
    out: Path,
    resume: bool,
    strict: bool,
    draw: DrawPredictions | None,
    on_update: OnUpdate,
    interrupts: AbstractContextManager[Callable[[], bool]],
    teacher: TeacherSource | None = None,
) -> dict[str, float]:
    """Train as one of `config.devices` processes, of which only rank 0 writes files. See `train`."""
    data = load_training_data(config)
    torch.manual_seed(config.seed)
    fabric = _fabric(config)
    learner, optimizer, peak_lrs = _learner(fabric, config, data)
    seed_rank(config.seed)
    card = make_card(config, data.split, data.size, {**data.origin, ONLINE: teacher is not None})
    precision = fabric.strategy.precision
    step = restore(out, learner.module, optimizer, precision, card) if resume else 0
    saver = CheckpointSaver(out, learner.module, optimizer, precision, torch.from_numpy(data.texts.features), card)
    teacher = teacher or cached_teacher(data)
    views = _checked_views(config, data, strict)
    validation = Validation(config, data, learner.module.network, draw)
    stream = Stream(len(views), data.loaded.cls.shape[1], config.batch_size, config.seed)

    first_step, line = step, {}

    def save_progress() -> Path | None:
        return saver.save(step) if step > first_step else None

    learner.train()
    with monitored(config, out, step, fabric.device, on_update) as monitor, interrupts as interrupted:
        loader = batches(views, stream, step, config.iterations, config.workers)
        for batch in monitor.timed(_save_on_error(loader, out, save_progress)):
            for group, peak_lr in zip(optimizer.param_groups, peak_lrs, strict=True):
                group["lr"] = peak_lr * schedule(step, config)
            targets = teacher_targets(teacher, batch, len(data.split.seen), fabric.device)
            terms = learner(to_device(batch.images, fabric.device), lambda targets=targets: targets)
            copy = AsyncHostCopy({"losses": torch.stack([value.detach() for value in terms.values()])})
            optimizer.zero_grad()
            fabric.backward(terms["total"])
            if config.max_grad_norm:
                fabric.clip_gradients(learner, optimizer, max_norm=config.max_grad_norm, error_if_nonfinite=False)
            step_if_finite(optimizer, terms["total"].detach())
            # only now: until here, the GPU receives work without a pause
            losses = dict(zip(terms, copy.arrays()["losses"].tolist(), strict=True))
            _check_finite(losses, batch, step + 1, saver)
            step += 1

            with monitor.paused():
                metrics, picture = validation.metrics(step, interrupted), validation.picture(step)
            line = monitor.update(step, {"lr": optimizer.param_groups[0]["lr"], **losses, **metrics}, picture)
            stop = ranks.any_rank(interrupted())
            if step % config.checkpoint_every == 0 or step == config.iterations or stop:
                saver.save(step)
            if stop and step < config.iterations:
                raise InterruptError(
                    f"interrupted after update {step}, which is saved; resume with `train --out {out} --resume`"
                )
    return line | {"peak_bytes": peak_memory(fabric.device)}


def schedule(step: int, config: TrainConfig) -> float:
    """Learning rate factor of update `step` (from 0): polynomial decay times linear warm-up."""
    decay = (1 - step / config.iterations) ** config.poly_power
    warmup = config.warmup_updates
    return decay * ((step + 1) / warmup if step < warmup else 1.0)


class Learner(nn.Module):
    """Student and loss in one module, so that Fabric wraps both."""

    def __init__(self, config: TrainConfig, data: TrainingData) -> None:
        super().__init__()
        text = torch.from_numpy(data.texts.features)
        self.network = StudentNetwork(config.arch, config.encoder, config.encoder_weights, text.shape[1])
        check_size(self.network, config, data.size)
        check_memory(config, self.network, data.size, text.shape[1])
        if config.compile:
            self.network.compile(dynamic=False)  # in place: the names of its weights stay
        self.loss = TeacherLoss(config, text[data.text_classes])

    def forward(
        self, images: UInt8[Tensor, "local 3 size size"], targets: Callable[[], TeacherTargets]
    ) -> dict[str, Tensor]:
        """The loss terms of a batch, in float32 whatever the student's precision.

        `targets` is a function because Fabric would cast CLS tokens in a tensor argument to the student's precision.
        """
        with compile_errors("the student"):
            features = self.network(images)
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.float(), targets())


@dataclass(frozen=True)
class CheckpointSaver:
    """Saves checkpoints. All processes call it, and rank 0 writes."""

    out: Path
    learner: Any
    optimizer: Any
    precision: Precision
    text: Float[Tensor, "class channel"]
    card: Mapping[str, Any]

    def save(self, step: int, failure: Mapping[str, Any] | None = None) -> Path | None:
        """Write a checkpoint, or the state that explains a `failure`. Returns its folder on rank 0, else None.

        Raises UserError, and keeps the older checkpoint, if weights are not finite: a gradient can overflow although
        the loss does not.
        """
        if failure is None and not all(bool(weight.isfinite().all()) for weight in self.learner.parameters()):
            raise UserError(f"update {step}: the weights are not finite and are not saved; {ADVICE}")
        card, kind = (self.card, STEP) if failure is None else ({**self.card, "failed": failure}, FAILED)
        state, folder = resume_state(self.learner, self.optimizer, self.precision), None
        if ranks.rank() == 0:
            folder = checkpoint.save(self.out, step, self.learner.network, self.text, card, state, kind)
        ranks.any_rank(False)  # a barrier: no process may end the run while rank 0 still writes
        return folder


def nonfinite_term(losses: Mapping[str, float]) -> str | None:
    """The last term that is not finite, if any: the sums `total` and `pixel` come before their terms."""
    terms = [name for name, value in losses.items() if name != "entropy" and not math.isfinite(value)]
    return terms[-1] if terms else None


def _check_finite(losses: Mapping[str, float], batch: Batch, step: int, saver: CheckpointSaver) -> None:
    term = nonfinite_term(losses)
    if not ranks.any_rank(term is not None):
        return
    term = term or "another process's"
    failure: dict[str, Any] = {"term": term, "losses": {name: str(value) for name, value in losses.items()}}
    failure |= {name: ranks.all_gather(getattr(batch, name)).tolist() for name in ("image", "view")}
    raise UserError(
        f"update {step}: the loss is not finite (term: {term}); weights and batch are kept in "
        f"{saver.save(step, failure)}; {ADVICE}"
    )


def _save_on_error(loader: Iterator[Batch], out: Path, save: Callable[[], Path | None]) -> Iterator[Batch]:
    """Yield the batches. If reading one fails, save the current state before raising the error.

    With several processes nothing is saved: saving needs all of them, and the others do not learn of the error in time.
    """
    try:
        yield from loader
    except UserError as error:
        if ranks.world_size() > 1 or not (saved := save()):
            raise
        raise type(error)(f"{error}; {saved.name} is saved, resume with `train --out {out} --resume`") from None


def _checked_views(config: TrainConfig, data: TrainingData, strict: bool) -> ViewDataset:
    """The dataset of views, after comparing images with the cache: all if `strict`, else a sample."""
    photometric = config.seed if config.photometric else None
    images = np.setdiff1d(np.flatnonzero(data.loaded.ok), data.held_out)
    views = ViewDataset(data.dataset, data.split, data.loaded, data.size, photometric, images)
    checked = views.images if strict else views.images[:: max(1, len(views) // NUM_CHECKED)]
    for index in checked[ranks.rank() :: ranks.world_size()]:
        views.check_unchanged(int(index))
    return views


def _learner(fabric: Fabric, config: TrainConfig, data: TrainingData) -> tuple[Any, Any, list[float]]:
    """Student with loss and optimizer on the device, and the peak learning rate of each parameter group."""
    learner: Any = Learner(config, data)
    if ranks.world_size() > 1 and fabric.device.type == "cuda":
        learner = convert_sync_batchnorm(learner)
    optimizer = create_optimizer(learner, learner.network.network.encoder, config)
    peak_lrs = [group["lr"] for group in optimizer.param_groups]
    return *fabric.setup(learner, optimizer), peak_lrs


def _fabric(config: TrainConfig) -> Fabric:
    device = resolve_device(config.device)
    on_gpu = device.type == "cuda"
    precision = config.precision
    if precision == "auto":
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if has_bf16 else "32-true"
    if ranks.world_size() == 1:
        devices = [device.index] if on_gpu and device.index is not None else 1
        return Fabric(accelerator=device.type, devices=devices, precision=precision)
    # LightningEnvironment: `launch_ranks` started these processes, even if a cluster's variables suggest otherwise.
    # find_unused_parameters: a batch without any label leaves the adapter out of the loss.
    # gloo for what is in host memory, so that exchanging it does not wait for the GPUs
    strategy = DDPStrategy(
        cluster_environment=LightningEnvironment(),
        find_unused_parameters=True,
        process_group_backend="cpu:gloo,cuda:nccl" if on_gpu else "gloo",
    )
    fabric = Fabric(accelerator=device.type, devices=ranks.world_size(), strategy=strategy, precision=precision)
    fabric.launch()
    return fabric
