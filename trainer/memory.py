"""Memory of training: how much it took, how much it will take, and settings that certainly do not fit."""

import copy
import resource
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from data_cache.errors import UserError
from data_cache.limits import machine_memory
from data_cache.system.devices import resolve_device
from trainer.config import TrainConfig

ADAM_BYTES = 16
"""Per parameter: its float32 value, its gradient, and AdamW's two moments."""
PSEUDO_LABELS = 32
"""Pseudo labels that an image is assumed to have."""
CE_TENSORS, NEL_TENSORS = 4, 9
"""Tensors of the size of the logits alive at once in one image's cross-entropy; focal and dice, on seen channels."""
PIXEL_BYTES = 5
"""Per pixel: its decoded colors and its label."""
AHEAD = 2
"""Batches that each decoding process keeps ready: PyTorch's prefetch factor."""
SHARED = Path("/dev/shm")
"""Where decoding processes pass batches on, on Linux; Docker's default is 64 MiB."""
SHM_ADVICE = "enlarge it (docker run --shm-size 1g), or pass --workers 0 or a smaller --batch-size"
PROCESS_BYTES = 100 * 2**20
"""The least that a process takes after importing PyTorch."""
PIXEL_KEPT = 2**16
"""More bytes than any student keeps per pixel: a batch that fits even so need not be measured."""


def peak_memory(device: torch.device) -> int:
    """The most bytes this process has held so far, in GPU memory, or in main memory for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def estimated_memory(config: TrainConfig, network: nn.Module, size: int, seen: int, mixed: bool) -> int:
    """Approximate bytes that training needs on each GPU: parameters, what backward keeps, one image's losses.

    Nothing is computed: the student runs on tensors without content, and what autograd keeps of them is counted.

    Args:
        config: batch size, loss stride and scope of pseudo labels.
        network: the student; it is moved to the meta device.
        size: side of its input in pixels.
        seen: seen classes.
        mixed: whether activations take two bytes (bf16) instead of four.

    """
    weights = sum(parameter.numel() for parameter in network.parameters()) * ADAM_BYTES
    activations, features = kept_by_backward(config, network, size, torch.bfloat16 if mixed else torch.float32)
    side = -(-size // config.loss_stride)
    rows = seen + PSEUDO_LABELS * (config.batch_size if config.pseudo_scope == "batch" else 1)
    losses = 4 * side * side * (rows * CE_TENSORS + seen * NEL_TENSORS)
    return weights + activations + 2 * 4 * features + losses


def kept_by_backward(config: TrainConfig, network: nn.Module, size: int, number: torch.dtype) -> tuple[int, int]:
    """Bytes that autograd keeps of a student's forward pass, and the number of elements of its features.

    Nothing is computed: the student, which is moved to the meta device, runs on tensors without content.
    """
    meta: Any = network.to("meta", number).train()
    # without content all storages have the same address, so they are distinguished by reference
    own = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*meta.parameters(), *meta.buffers())}
    kept: dict[StorageWeakRef, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in own:
            kept[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = config.batch_size // config.devices
        features = meta.network(torch.empty(batch, 3, size, size, device="meta", dtype=number))
        return sum(kept.values()), features.numel()


def check_processes(config: TrainConfig) -> None:
    """Raise UserError for more processes than fit into memory."""
    _check_fits({f"--devices {config.devices}": config.devices * PROCESS_BYTES}, machine_memory(), "this machine")


def check_memory(config: TrainConfig, network: nn.Module, size: int, channels: int) -> None:
    """Raise UserError, naming what needs most, for settings that certainly need more memory than there is.

    Args:
        config: batch size, bank, workers, devices.
        network: the student; it is left as it is.
        size: side of its input in pixels.
        channels: width of the joint space.

    """
    _check_shared(config, size)
    device, pixels = resolve_device(config.device), config.batch_size * size * size
    on_gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_gpu else machine_memory()
    images = f"--batch-size {config.batch_size} of {size} pixels (--size)"
    learning = 4 * 3 * pixels // config.devices
    if pixels // config.devices * PIXEL_KEPT > total:
        learning += _least_kept(config, network, size, on_gpu)
    bank = {f"--bank {config.bank}": _bank(config, channels)}
    if on_gpu:
        _check_fits({images: learning, **bank}, total, "the GPU")
        bank, learning = {}, 0
    # without a GPU all processes share this memory
    here = {name: config.devices * need for name, need in bank.items()}
    here[f"--workers {config.workers}"] = _waiting(config, size)
    here[images] = PIXEL_BYTES * pixels + config.devices * learning
    _check_fits(here, machine_memory(), "this machine")


def _check_shared(config: TrainConfig, size: int) -> None:
    need = _waiting(config, size)
    if not need or not SHARED.is_dir():
        return
    there = shutil.disk_usage(SHARED)
    if there.total and need > there.free:  # one without a limit reports a total of 0
        raise UserError(
            f"{SHARED}: has {there.free / 2**20:.1f} MiB free, and decoding processes need {need / 2**20:.1f} MiB "
            f"there for batches; {SHM_ADVICE}"
        )


def _waiting(config: TrainConfig, size: int) -> int:
    """Bytes of the batches that wait in shared memory when decoding is faster than training."""
    return PIXEL_BYTES * config.batch_size * size * size * min(AHEAD * config.workers, config.iterations)


def _bank(config: TrainConfig, channels: int) -> int:
    """Bytes of the bank in each process, with the copy and the logits that the loss makes of it."""
    rows, own = config.bank * config.batch_size, config.batch_size // config.devices
    return rows * (4 * channels + 8) + (rows * 4 * (channels + own) if config.glm != "off" else 0)


def _least_kept(config: TrainConfig, network: nn.Module, size: int, on_gpu: bool) -> int:
    """The least bytes that backward keeps: half of what is measured, because fused attention keeps less."""
    whole = config.precision == "32-true" or (config.precision == "auto" and not on_gpu)
    with torch.random.fork_rng(devices=[]), suppress(Exception):  # some students cannot run on meta tensors
        number = torch.float32 if whole else torch.bfloat16
        return kept_by_backward(config, copy.deepcopy(network), size, number)[0] // 2
    return 0


def _check_fits(parts: Mapping[str, int], total: int, where: str) -> None:
    need = sum(parts.values())
    if need > total:
        most = max(parts, key=lambda name: parts[name])
        raise UserError(
            f"{most}: training needs at least {need / 2**30:.1f} GiB of memory, and {where} has {total / 2**30:.1f}; "
            "lower it"
        )
