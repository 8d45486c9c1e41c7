"""The real loop with everything that differs between parts of a batch switched off, in one process and in two.

Batch norm and dropout are in eval mode, and some batches lose labels, so that a part has none at all.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

from trainer import loop
from trainer.config import TrainConfig
from trainer.distributed.ranks import all_gather, rank
from trainer.losses.plm import IGNORE
from trainer.losses.total import TeacherTargets

SEEN = 3
Hidden = Mapping[int, Mapping[int, str]]
"""What is taken out of the labels, by update (from 1) and image: `seen`, `pseudo` or `all`."""


def hide(target: torch.Tensor, what: str) -> torch.Tensor:
    """A label map without its seen labels, its pseudo labels, or any."""
    gone = {"seen": (target >= 0) & (target < SEEN), "pseudo": target >= SEEN, "all": target == target}[what]
    return target.masked_fill(gone, IGNORE)


def train_each(
    configs: Mapping[str, TrainConfig],
    out: Path,
    hidden: Hidden,
    on_update: Callable[[dict[str, float]], None] = lambda _: None,
    interrupts: AbstractContextManager[Callable[[], bool]] | None = None,
) -> dict[str, float]:
    """Train by each config into a folder of its name below `out`; and keep what each rank's bank holds in the end."""
    teacher_targets, resume_state, last = loop.teacher_targets, loop.resume_state, {}

    class Learner(loop.Learner):
        updates = 0

        def train(self, mode: bool = True) -> "Learner":
            return super().train(False)

        def forward(self, images, targets):
            type(self).updates += 1
            return super().forward(images, targets)

    def censored(teacher, batch, classes, device) -> TeacherTargets:
        whole, away = teacher_targets(teacher, batch, classes, device), hidden.get(Learner.updates + 1, {})
        rows = zip(whole.target, whole.image, strict=True)
        return whole._replace(target=torch.stack([hide(t, away[int(i)]) if int(i) in away else t for t, i in rows]))

    for name, config in configs.items():
        Learner.updates, kept = 0, []

        def keep(module, optimizer, kept=kept):
            kept.append(module.loss.bank)
            return resume_state(module, optimizer)

        with (
            mock.patch.object(loop, "Learner", Learner),
            mock.patch.object(loop, "teacher_targets", censored),
            mock.patch.object(loop, "resume_state", keep),
            # Adam divides gradients by their size, those that are nothing but rounding included
            mock.patch.object(torch.optim, "AdamW", partial(torch.optim.SGD, lr=1e-3, momentum=0.9)),
        ):
            last = loop.train_rank(
                config, out / name, False, False, on_update, interrupts or nullcontext(lambda: False)
            )
        save_file({"cls": kept[-1].cls.clone(), "image": kept[-1].image.clone()}, out / f"{name}.bank{rank()}")
    return last


def gather_parts(cases: Sequence[Sequence[Sequence[float]]], *_: object) -> dict[str, list[float]]:
    """What ranks with so many rows each gather, and the gradients that come back to their own, case by case."""
    found = {}
    for case, parts in enumerate(cases):
        mine = torch.tensor(parts[rank()], requires_grad=True)
        everyone = all_gather(mine)
        # another loss on each rank: the gradient of a row is the sum over all of them
        weights = torch.arange(1.0, len(everyone) + 1) ** (rank() + 1)
        (everyone * weights).sum().backward()
        found |= {f"rows {case}": everyone.tolist(), f"gradients {case}": all_gather(mine.grad).tolist()}
    return found
