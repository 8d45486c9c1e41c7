"""AdamW, whose updates are launched without waiting for the loss."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.distributed import ranks
from trainer.students.network import parameter_groups


def create_optimizer(module: nn.Module, encoder: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Optimizer of a module's parameters, of which those of the encoder have the lower learning rate.

    It is fused, which is several times as fast on a CPU, too. With precision 16-mixed it is not, because Fabric cannot
    clip the gradients of a fused optimizer if they are scaled.
    """
    groups = parameter_groups(module, config.lr, config.head_lr, config.weight_decay, slow=encoder)
    return torch.optim.AdamW(groups, fused=config.precision != "16-mixed")


def step_if_finite(optimizer: Any, total: Float[Tensor, ""]) -> None:
    """Update the weights, unless the loss of any process is not finite.

    A fused optimizer checks this on the device, so the host need not wait for the loss. Any other one waits.

    Args:
        optimizer: an optimizer in Fabric's wrapper.
        total: the loss of this process.

    """
    is_nonfinite = ranks.all_reduce_sum(1 - total.isfinite().float()).clamp(max=1)
    if optimizer.optimizer.defaults["fused"]:
        optimizer.optimizer.found_inf = is_nonfinite
    elif is_nonfinite:
        return
    optimizer.step()
