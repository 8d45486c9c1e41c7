"""Which device `--device` means."""

import torch

from data_cache.errors import UsageError
from data_cache.system.environment import keep_freed_memory


def resolve_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises UsageError for a device this machine does not have.

    If it is the CPU, this process is made fit for networks (`keep_freed_memory`).
    """
    if (device := _device(name)).type == "cpu":
        keep_freed_memory()
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name}: choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: {torch.cuda.device_count()} CUDA GPUs are visible; pass --device cpu")
    return device
