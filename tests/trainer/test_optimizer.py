"""The optimizer: an update whose loss is not finite changes nothing."""

from types import SimpleNamespace

import pytest
import torch

from trainer.config import TrainConfig
from trainer.optimizer import create_optimizer, step_if_finite


def state_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Copies of all weights and of the optimizer's moments and steps."""
    moments = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    return [value.detach().clone() for group in optimizer.param_groups for value in group["params"]] + [
        value.clone() for value in moments
    ]


@pytest.mark.parametrize("precision", ["auto", "16-mixed"])
@pytest.mark.parametrize("total", [torch.nan, torch.inf, -torch.inf])
def test_an_update_with_a_nonfinite_loss_changes_neither_weights_nor_moments(total, precision):
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = create_optimizer(network, network[0], TrainConfig(lr=0.1, precision=precision))
    wrapped = SimpleNamespace(optimizer=optimizer, step=optimizer.step)
    for value in (1.0, total, 1.0):
        before = state_of(optimizer)
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, value)
        step_if_finite(wrapped, torch.tensor(value))
        after = state_of(optimizer)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=False)]
        assert not any(same) if value == 1 else all(same)
    assert {int(entry["step"]) for entry in optimizer.state.values()} == {2}
