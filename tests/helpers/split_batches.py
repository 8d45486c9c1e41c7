"""The training loop without anything that depends on how a batch is split over ranks: runs in one process or in two.

Batch norm and dropout are in eval mode, and the student's ReLUs are GELUs: an input of a ReLU that rounds to either
side of zero changes gradients by several 1e-5. Some images lose labels, so that one rank may have none.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from oracles import labels_present
from safetensors.torch import save_file
from torch import nn

from trainer import loop
from trainer.config import TrainConfig
from trainer.distributed.ranks import all_gather, rank
from trainer.losses.pixel_terms import IGNORE
from trainer.losses.total import TeacherTargets

SEEN = 3
Hidden = Mapping[int, Mapping[int, str]]
"""Which labels are removed, by update (from 1) and image: `seen`, `pseudo` or `all`."""


def hide(target: torch.Tensor, what: str) -> torch.Tensor:
    """A label map without its seen labels, its pseudo labels, or all labels."""
    gone = {"seen": (target >= 0) & (target < SEEN), "pseudo": target >= SEEN, "all": target == target}[what]
    return target.masked_fill(gone, IGNORE)


def train_each(
    configs: Mapping[str, TrainConfig],
    out: Path,
    hidden: Hidden,
    on_update: Callable[[dict[str, float]], None] = lambda _: None,
    interrupts: AbstractContextManager[Callable[[], bool]] | None = None,
) -> dict[str, float]:
    """Train each config into the folder of its name below `out`, and save each rank's final bank."""
    teacher_targets, resume_state, last = loop.teacher_targets, loop.resume_state, {}

    class Learner(loop.Learner):
        updates = 0

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            for module in list(self.network.modules()):
                for name, child in module.named_children():
                    if isinstance(child, nn.ReLU):
                        setattr(module, name, nn.GELU())

        def train(self, mode: bool = True) -> "Learner":
            return super().train(False)

        def forward(self, images, targets):
            type(self).updates += 1
            return super().forward(images, targets)

    def with_hidden_labels(teacher, batch, classes, device) -> TeacherTargets:
        whole, away = teacher_targets(teacher, batch, classes, device), hidden.get(Learner.updates + 1, {})
        rows = zip(whole.target, whole.image, strict=True)
        target = torch.stack([hide(t, away[int(i)]) if int(i) in away else t for t, i in rows])
        return whole._replace(target=target, present=labels_present(target.numpy(), SEEN))

    for name, config in configs.items():
        Learner.updates, kept = 0, []

        def keep(module, *others, kept=kept):
            kept.append(module.loss.bank)
            return resume_state(module, *others)

        with (
            mock.patch.object(loop, "Learner", Learner),
            mock.patch.object(loop, "teacher_targets", with_hidden_labels),
            mock.patch.object(loop, "resume_state", keep),
            # Adam would scale up gradients that are nothing but rounding
            mock.patch.object(torch.optim, "AdamW", partial(torch.optim.SGD, lr=1e-3, momentum=0.9)),
        ):
            last = loop.train_rank(
                config, out / name, False, False, None, on_update, interrupts or nullcontext(lambda: False)
            )
        save_file({"cls": kept[-1].cls.clone(), "image": kept[-1].image.clone()}, out / f"{name}.bank{rank()}")
    return last


def gather_parts(cases: Sequence[Sequence[Sequence[float]]], *_: object) -> dict[str, list[float]]:
    """The rows that each rank gathers and the gradients of its own rows, case by case."""
    found = {}
    for case, parts in enumerate(cases):
        mine = torch.tensor(parts[rank()], requires_grad=True)
        everyone = all_gather(mine)
        # each rank has another loss: the gradient of a row is the sum over all ranks
        weights = torch.arange(1.0, len(everyone) + 1) ** (rank() + 1)
        (everyone * weights).sum().backward()
        found |= {f"rows {case}": everyone.tolist(), f"gradients {case}": all_gather(mine.grad).tolist()}
    return found
