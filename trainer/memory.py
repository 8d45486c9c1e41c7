"""Memory of training: its measured peak, an estimate, and a check that refuses settings that cannot fit."""

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
from trainer.losses.pixel_torch import CHUNK
from trainer.students.network import StudentNetwork

ADAM_BYTES = 16
"""Per parameter: its float32 value, its gradient, and the two moments of AdamW."""
PSEUDO_LABELS = 32
"""Assumed number of pseudo labels per image."""
GRID_LOGITS = 4
"""Tensors of a batch's logits on the student's grid that exist at once."""
CHUNK_TENSORS = 12
"""Tensors of upsampled logits that exist at once, each of at most `trainer.losses.pixel_torch.CHUNK` elements."""
PIXEL_BYTES = 5
"""Per pixel: decoded RGB and an int16 label."""
PREFETCH_FACTOR = 2
"""Batches that each decoding process keeps ready (PyTorch's default)."""
SHARED = Path("/dev/shm")
"""Through which decoding processes send batches on Linux. Docker's default size is 64 MiB."""
SHM_ADVICE = "enlarge it (docker run --shm-size 1g), or pass --workers 0 or a smaller --batch-size"
PROCESS_BYTES = 100 * 2**20
"""Lower bound of what a process takes after importing PyTorch."""
MAX_ACTIVATION_BYTES = 2**16
"""More bytes per pixel than any student keeps for backward: a batch that fits even so need not be measured."""


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: GPU memory, or main memory for the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def estimated_memory(config: TrainConfig, network: StudentNetwork, size: int, seen: int, mixed: bool) -> int:
    """Approximate bytes that training needs on each GPU: parameters, activations, and the losses.

    Args:
        config: batch size, loss stride and scope of pseudo labels.
        network: the student, which is moved to the meta device.
        size: side of its input in pixels.
        seen: number of seen classes.
        mixed: whether activations take two bytes (bf16) instead of four.

    """
    weights = sum(parameter.numel() for parameter in network.parameters()) * ADAM_BYTES
    activations, features = saved_activations(config, network, size, torch.bfloat16 if mixed else torch.float32)
    rows = seen + PSEUDO_LABELS * (config.batch_size if config.pseudo_scope == "batch" else 1)
    logits = config.batch_size // config.devices * rows * (size // network.stride) ** 2
    upsampled = config.batch_size // config.devices * rows * (-(-size // config.loss_stride)) ** 2
    losses = 4 * (GRID_LOGITS * logits + CHUNK_TENSORS * min(upsampled, CHUNK["cuda"]))
    return weights + activations + 2 * 4 * features + losses


def saved_activations(config: TrainConfig, network: nn.Module, size: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that autograd saves in a student's forward pass, and the number of elements of its features.

    Nothing is computed: the student is moved to the meta device and runs on tensors without data.
    """
    meta: Any = network.to("meta", dtype).train()
    # all meta storages have the same address, so they are distinguished by reference
    weights = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*meta.parameters(), *meta.buffers())}
    saved: dict[StorageWeakRef, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = StorageWeakRef(tensor.untyped_storage())
        if storage not in weights:
            saved[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batch = config.batch_size // config.devices
        features = meta.network(torch.empty(batch, 3, size, size, device="meta", dtype=dtype))
        return sum(saved.values()), features.numel()


def check_processes(config: TrainConfig) -> None:
    """Raise UserError if there are more processes than fit into memory."""
    _check_fits({f"--devices {config.devices}": config.devices * PROCESS_BYTES}, machine_memory(), "this machine")


def check_memory(config: TrainConfig, network: nn.Module, size: int, channels: int) -> None:
    """Raise UserError if the settings cannot fit into memory. It names the setting that needs most.

    Args:
        config: batch size, bank, workers, devices.
        network: the student, which is not modified.
        size: side of its input in pixels.
        channels: width of the joint space.

    """
    _check_shared(config, size)
    device, pixels = resolve_device(config.device), config.batch_size * size * size
    on_gpu = device.type == "cuda"
    total = torch.cuda.get_device_properties(device).total_memory if on_gpu else machine_memory()
    images = f"--batch-size {config.batch_size} of {size} pixels (--size)"
    activations = 4 * 3 * pixels // config.devices
    if pixels // config.devices * MAX_ACTIVATION_BYTES > total:
        activations += _min_activations(config, network, size, on_gpu)
    bank = {f"--bank {config.bank}": _bank_bytes(config, channels)}
    if on_gpu:
        _check_fits({images: activations, **bank}, total, "the GPU")
        bank, activations = {}, 0
    # on a CPU, all training processes share this memory
    needs = {name: config.devices * need for name, need in bank.items()}
    needs[f"--workers {config.workers}"] = _prefetched_bytes(config, size)
    needs[images] = PIXEL_BYTES * pixels + config.devices * activations
    _check_fits(needs, machine_memory(), "this machine")


def _check_shared(config: TrainConfig, size: int) -> None:
    need = _prefetched_bytes(config, size)
    if not need or not SHARED.is_dir():
        return
    usage = shutil.disk_usage(SHARED)
    if usage.total and need > usage.free:  # without a limit, the total is 0
        raise UserError(
            f"{SHARED}: has {usage.free / 2**20:.1f} MiB free, and decoding processes need {need / 2**20:.1f} MiB "
            f"there for batches; {SHM_ADVICE}"
        )


def _prefetched_bytes(config: TrainConfig, size: int) -> int:
    """Bytes of the batches waiting in shared memory when decoding is faster than training."""
    return PIXEL_BYTES * config.batch_size * size * size * min(PREFETCH_FACTOR * config.workers, config.iterations)


def _bank_bytes(config: TrainConfig, channels: int) -> int:
    """Bytes of the bank in each process, including the copy and the logits that the loss makes of it."""
    entries, local_batch = config.bank * config.batch_size, config.batch_size // config.devices
    return entries * (4 * channels + 8) + (entries * 4 * (channels + local_batch) if config.glm != "off" else 0)


def _min_activations(config: TrainConfig, network: nn.Module, size: int, on_gpu: bool) -> int:
    """Lower bound of the bytes saved for backward: half of the measured ones, because fused attention saves less."""
    full_precision = config.precision == "32-true" or (config.precision == "auto" and not on_gpu)
    with torch.random.fork_rng(devices=[]), suppress(Exception):  # some students cannot run on meta tensors
        dtype = torch.float32 if full_precision else torch.bfloat16
        return saved_activations(config, copy.deepcopy(network), size, dtype)[0] // 2
    return 0


def _check_fits(needs: Mapping[str, int], total: int, where: str) -> None:
    need = sum(needs.values())
    if need > total:
        largest = max(needs, key=lambda name: needs[name])
        raise UserError(
            f"{largest}: training needs at least {need / 2**30:.1f} GiB of memory, and {where} has "
            f"{total / 2**30:.1f} GiB; lower it"
        )
