"""Copies to a GPU that the host does not wait for, and from one that wait only for what they copy."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor


class AsyncHostCopy:
    """Copies of named tensors in host memory; reading them waits only for the work queued before the copy.

    A plain copy would also wait for all work queued since, and leave the GPU idle until it is given more.
    """

    def __init__(self, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        self._host = {name: _copied(tensor) for name, tensor in tensors.items()}
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        self._events = [torch.cuda.current_stream(device).record_event() for device in devices]

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """The copies, once they are complete."""
        for event in self._events:
            event.synchronize()
        return {name: tensor.numpy() for name, tensor in self._host.items()}


def to_device(
    values: Shaped[np.ndarray, "*any"] | Shaped[Tensor, "*any"], device: torch.device
) -> Shaped[Tensor, "*any"]:
    """Values in host memory as a tensor on the device. A GPU copies them once it has done the work queued before."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and not tensor.is_pinned():
        tensor = tensor.pin_memory()  # otherwise the copy would wait for that work
    return tensor.to(device, non_blocking=True)


def _copied(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
