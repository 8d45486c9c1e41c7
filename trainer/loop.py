"""The training loop, to be read top to bottom: cache -> batches -> student -> losses -> checkpoint."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from jaxtyping import Float, UInt8
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.strategies import DDPStrategy
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn

from data_cache.callbacks import Log, OnUpdate, ignore
from data_cache.errors import InterruptError, UsageError, UserError, disk_errors
from data_cache.system.devices import resolve_device
from trainer import checkpoint
from trainer.config import CONFIG, TrainConfig
from trainer.data import Batch, TrainingData, ViewDataset, load_training_data
from trainer.distributed import ranks
from trainer.distributed.launch import launch_ranks
from trainer.interrupt import interruptible
from trainer.loader import batches
from trainer.losses.total import TeacherLoss, TeacherTargets
from trainer.memory import check_memory, check_processes, peak_memory
from trainer.resume import restore, resume_state, seed_rank
from trainer.run import LOG, exclusive_run, full_disk_advice, reopen_log, repair_log
from trainer.sampler import Stream
from trainer.students.network import StudentNetwork, check_size, parameter_groups
from trainer.teacher import CachedTeacher, TeacherSource, teacher_targets

CHECKED = 16
"""Images whose hashes are compared at the start; all others are compared when they are first decoded."""


def train(
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    strict: bool = False,
    on_update: OnUpdate = ignore,
    teacher: TeacherSource | None = None,
    log: Log = ignore,
) -> dict[str, float]:
    """Train a student into the folder `out`: config.json, log.jsonl and step_N/. One process at a time may do so.

    With several `config.devices` that many processes train, and this one watches them.

    Args:
        config: the settings.
        out: the run's folder.
        resume: continue from the newest checkpoint, bit for bit on CPU.
        strict: compare all images with the cache before the first update, instead of a sample.
        on_update: receives the losses of every update.
        teacher: replaces the cache as the source of CLS tokens and pseudo labels.
        log: receives a line if a damaged log was repaired.

    Returns:
        The last update's losses, and the most memory held (`peak_bytes`).

    Raises:
        UserError: `out` holds another run, or a loss is not finite.
        UsageError: invalid settings, or a `teacher` for several processes.

    """
    if teacher and config.devices > 1:
        raise UsageError(f"--online: trains in one process; leave --devices {config.devices} out")
    check_processes(config)
    with exclusive_run(out):
        if resume:
            if not checkpoint.checkpoints(out):
                raise UserError(f"--resume: nothing was saved in {out} yet; leave --resume out to start from scratch")
            repair_log(out / LOG, log)
        elif checkpoint.checkpoints(out):
            raise UsageError(f"--out {out}: holds a trained run; pass --resume to continue it, or another --out")
        if config.devices == 1:
            return train_rank(config, out, resume, strict, on_update, interruptible(), teacher)
        device, arguments = resolve_device(config.device), (config, out, resume, strict)
        return launch_ranks(device, config.devices, train_rank, arguments, on_update)


def train_rank(
    config: TrainConfig,
    out: Path,
    resume: bool,
    strict: bool,
    on_update: OnUpdate,
    interrupts: AbstractContextManager[Callable[[], bool]],
    teacher: TeacherSource | None = None,
) -> dict[str, float]:
    """Train as one of `config.devices` processes; only the one of rank 0 writes. See `train`."""
    data = load_training_data(config)
    torch.manual_seed(config.seed)
    fabric = _fabric(config)
    learner, optimizer, peaks = _learner(fabric, config, data)
    seed_rank(config.seed)
    card = checkpoint.card_of(config, data.split, data.size, {**data.origin, checkpoint.ONLINE: teacher is not None})
    step = restore(out, learner.module, optimizer, card) if resume else 0
    saver = Saver(out, learner.module, optimizer, torch.from_numpy(data.texts.features), card)
    teacher = teacher or CachedTeacher(data.loaded)
    views = _checked_views(config, data, strict)
    stream = Stream(len(views), data.loaded.cls.shape[1], config.batch_size, config.seed)

    first, start, line = step, time.perf_counter(), {}

    def save_progress() -> Path | None:
        return saver.save(step) if step > first else None

    learner.train()
    with _open_log(config, out, step) as log, interrupts as interrupted:
        ahead = batches(views, stream, step, config.iterations, config.workers)
        for batch in _saving_on_error(ahead, out, save_progress):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(step, config)
            targets = teacher_targets(teacher, batch, len(data.split.seen), fabric.device)
            terms = learner(batch.images.to(fabric.device, non_blocking=True), lambda targets=targets: targets)
            # read back together: reading each by itself would stall a GPU
            losses = dict(zip(terms, torch.stack([value.detach() for value in terms.values()]).tolist(), strict=True))
            _check_finite(losses, batch, step + 1, saver)
            optimizer.zero_grad()
            fabric.backward(terms["total"])
            if config.max_grad_norm:
                fabric.clip_gradients(learner, optimizer, max_norm=config.max_grad_norm, error_if_nonfinite=False)
            optimizer.step()
            step += 1

            line = {"step": step, "lr": optimizer.param_groups[0]["lr"], **losses}
            line["seconds"] = round(time.perf_counter() - start, 3)
            on_update(line)
            if log and (step % config.log_every == 0 or step in (1, config.iterations)):
                log.write(json.dumps(line) + "\n")
                log.flush()
            stop = ranks.any_rank(interrupted())
            if step % config.checkpoint_every == 0 or step == config.iterations or stop:
                saver.save(step)
            if stop and step < config.iterations:
                raise InterruptError(
                    f"interrupted after update {step}, which is saved; resume with `train --out {out} --resume`"
                )
    return line | {"peak_bytes": peak_memory(fabric.device)}


def schedule(step: int, config: TrainConfig) -> float:
    """Factor on the learning rates at update `step` (from 0): polynomial decay times a linear warm-up."""
    decay = (1 - step / config.iterations) ** config.poly_power
    warm = config.warmup_updates
    return decay * ((step + 1) / warm if step < warm else 1.0)


class Learner(nn.Module):
    """Student and loss as one module, so that Fabric wraps both."""

    def __init__(self, config: TrainConfig, data: TrainingData) -> None:
        super().__init__()
        text = torch.from_numpy(data.texts.features)
        self.network = StudentNetwork(config.arch, config.encoder, config.encoder_weights, text.shape[1])
        check_size(self.network, config, data.size)
        check_memory(config, self.network, data.size, text.shape[1])
        self.loss = TeacherLoss(config, text[data.split.seen_index])

    def forward(
        self, images: UInt8[Tensor, "own 3 size size"], targets: Callable[[], TeacherTargets]
    ) -> dict[str, Tensor]:
        """The loss terms of a batch, in float32 whatever the student computes in.

        The teacher's `targets` come as a call: Fabric would round its CLS tokens to the student's precision.
        """
        features = self.network(images)
        with torch.autocast(features.device.type, enabled=False):
            return self.loss(features.float(), targets())


@dataclass(frozen=True)
class Saver:
    """Saves the state of a training: all processes take part, and the one of rank 0 writes."""

    out: Path
    learner: Any
    optimizer: Any
    text: Float[Tensor, "class channel"]
    card: Mapping[str, Any]

    def save(self, step: int, failure: Mapping[str, Any] | None = None) -> Path | None:
        """Write the checkpoint of an update, or what explains a `failure`; returns its folder, on rank 0 only."""
        card, kind = (
            (self.card, checkpoint.STEP) if failure is None else ({**self.card, "failed": failure}, checkpoint.FAILED)
        )
        state, folder = resume_state(self.learner, self.optimizer), None
        if ranks.rank() == 0:
            folder = checkpoint.save(self.out, step, self.learner.network, self.text, card, state, kind)
        ranks.any_rank(False)  # a barrier: no process may end the run while rank 0 still writes
        return folder


def not_finite(losses: Mapping[str, float]) -> str | None:
    """The last term that is not finite, if any: `total` and `pixel` come before the terms they consist of."""
    bad = [name for name, value in losses.items() if name != "entropy" and not math.isfinite(value)]
    return bad[-1] if bad else None


def _check_finite(losses: Mapping[str, float], batch: Batch, step: int, saver: Saver) -> None:
    bad = not_finite(losses)
    if not ranks.any_rank(bad is not None):
        return
    term = bad or "another process's"
    failure: dict[str, Any] = {"term": term, "losses": {name: str(value) for name, value in losses.items()}}
    failure |= {name: ranks.all_gather(getattr(batch, name)).tolist() for name in ("image", "view")}
    raise UserError(
        f"update {step}: the loss is not finite (term: {term}); weights and batch are kept in "
        f"{saver.save(step, failure)}; lower --lr in the config, or use 32-true"
    )


def _saving_on_error(ahead: Iterator[Batch], out: Path, save: Callable[[], Path | None]) -> Iterator[Batch]:
    """The batches; if reading one fails, the current state is saved before the error is raised.

    With several processes nothing is saved: the others do not learn of the error in time, and saving needs all.
    """
    try:
        yield from ahead
    except UserError as error:
        if ranks.world_size() > 1 or not (kept := save()):
            raise
        raise type(error)(f"{error}; {kept.name} is saved, resume with `train --out {out} --resume`") from None


@contextmanager
def _open_log(config: TrainConfig, out: Path, step: int) -> Iterator[TextIO | None]:
    """Save the config and open the log, on rank 0 only; a full disk within becomes an error of one line."""
    with disk_errors(out, lambda: full_disk_advice(out)):
        if ranks.rank():
            yield None
            return
        config.save(out / CONFIG)
        with reopen_log(out / LOG, step) as log:
            yield log


def _checked_views(config: TrainConfig, data: TrainingData, strict: bool) -> ViewDataset:
    """The views, after comparing a sample of the images with the cache, or all if `strict`; processes share this."""
    photometric = config.seed if config.photometric else None
    views = ViewDataset(data.dataset, data.split, data.loaded, data.size, photometric)
    checked = views.images if strict else views.images[:: max(1, len(views) // CHECKED)]
    for index in checked[ranks.rank() :: ranks.world_size()]:
        views.check_unchanged(int(index))
    return views


def _learner(fabric: Fabric, config: TrainConfig, data: TrainingData) -> tuple[Any, Any, list[float]]:
    """Student and optimiser on the device, and the peak learning rate of each parameter group."""
    learner: Any = Learner(config, data)
    if ranks.world_size() > 1 and fabric.device.type == "cuda":
        learner = convert_sync_batchnorm(learner)
    encoder = learner.network.network.encoder
    groups = parameter_groups(learner, config.lr, config.head_lr, config.weight_decay, slow=encoder)
    peaks = [group["lr"] for group in groups]
    return *fabric.setup(learner, torch.optim.AdamW(groups)), peaks


def _fabric(config: TrainConfig) -> Fabric:
    device = resolve_device(config.device)
    kind = device.type
    auto = "bf16-mixed" if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    precision = auto if config.precision == "auto" else config.precision
    if ranks.world_size() == 1:
        devices = [device.index] if device.index is not None and kind == "cuda" else 1
        return Fabric(accelerator=kind, devices=devices, precision=precision)
    # LightningEnvironment: `launch_ranks` started these processes, whatever a cluster's own variables say.
    # find_unused_parameters: a batch without any label leaves the adapter out of the loss.
    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), find_unused_parameters=True)
    fabric = Fabric(accelerator=kind, devices=ranks.world_size(), strategy=strategy, precision=precision)
    fabric.launch()
    return fabric
