"""The torch device that `--device` selects."""

import torch

from data_cache.errors import UsageError
from data_cache.system.environment import keep_freed_memory


def resolve_device(name: str) -> torch.device:
    """The device of this name; `auto` is the GPU if available. Raises UsageError if this machine does not have it.

    For the CPU, the memory allocator is tuned for network activations (`keep_freed_memory`).
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
