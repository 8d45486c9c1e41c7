"""No update waits for the GPU, which would have nothing to do until it is given more work.

Without a GPU, an update runs on PyTorch's meta device, whose tensors have shapes but no values: what cannot be computed
from shapes and host memory fails there, as does what a GPU would have to wait for.
"""

import sys
from unittest import mock

import numpy as np
import pytest
import torch
from oracles import draw_targets
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer import loop
from trainer.config import TrainConfig
from trainer.data import Batch
from trainer.losses import pixel_sums
from trainer.losses.total import TeacherLoss
from trainer.optimizer import create_optimizer, step_if_finite
from trainer.students.network import StudentNetwork
from trainer.teacher import teacher_targets

SEEN, CHANNELS, BATCH, SIZE = 3, 16, 2, 64
META = torch.device("meta")


class NoWaits(TorchDispatchMode):
    """Raise an error at an operation on the meta device that also reads host memory, other than by a queued copy."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        on_meta = any(tensor.is_meta for tensor in tensors)
        # a number in host memory becomes an argument of the kernel
        mixed = on_meta and any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors)
        if mixed and not (func is torch.ops.aten._to_copy.default and kwargs.get("non_blocking") and result.is_meta):
            raise RuntimeError(f"{func} would wait for the GPU")
        return result


class StubKernel:
    """A Triton kernel that is launched and does nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


def draw_batch() -> tuple[Batch, tuple[np.ndarray, np.ndarray]]:
    """A batch, and the teacher's CLS tokens and pseudo labels, in host memory."""
    rng = np.random.default_rng(0)
    label = torch.from_numpy(draw_targets(0, BATCH, (SIZE, SIZE), SEEN, 0).astype(np.int16))
    images = torch.from_numpy(rng.integers(0, 256, (BATCH, 3, SIZE, SIZE), dtype=np.uint8))
    pseudo_label = np.where(draw_targets(1, BATCH, (4, 4), 0, 3) < 0, 255, 2).astype(np.uint8)
    cls = rng.normal(size=(BATCH, CHANNELS)).astype(np.float16)
    return Batch(images, label, torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.long)), (cls, pseudo_label)


def run_update(config: TrainConfig) -> None:
    """An update on the meta device, from the batch to the optimizer."""
    network = StudentNetwork(config.arch, config.encoder, "none", CHANNELS).to(META)
    loss = TeacherLoss(config, torch.randn(SEEN, CHANNELS)).to(META)
    optimizer = create_optimizer(torch.nn.ModuleList([network, loss]), network.network.encoder, config)
    batch, teacher = draw_batch()
    with NoWaits():
        targets = teacher_targets(lambda _image, _view: teacher, batch, SEEN, META)
        total = loss(network(loop.to_device(batch.images, META)), targets)["total"]
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        step_if_finite(mock.Mock(optimizer=optimizer, step=optimizer.step), total.detach())


STUDENTS = [("segformer", "mit_b0"), ("upernet", "tu-swin_tiny_patch4_window7_224"), ("segnext", "mscan_t")]
SETTINGS = [
    {"pseudo_scope": "image", "loss_stride": 4, "glm": "max"},
    {"nel_ignore": "masked", "logits": "dot", "vla": "mlp"},
]


@pytest.mark.parametrize(
    "settings",
    [{"arch": arch, "encoder": encoder} for arch, encoder in STUDENTS] + SETTINGS,
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_an_update_never_waits_for_the_device(settings, monkeypatch):
    pixel_triton = pytest.importorskip("trainer.losses.pixel_triton")
    for kernel in ("_forward", "_backward"):
        monkeypatch.setattr(pixel_triton, kernel, StubKernel())
    monkeypatch.setattr(pixel_sums, "_backend", lambda _logits: pixel_triton)
    # PyTorch knows no fused optimizer on the meta device, but its kernel
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_args, **_kwargs: None
    )
    run_update(TrainConfig(batch_size=BATCH, **settings))


@pytest.mark.parametrize(
    "operation",
    [
        lambda on_device: on_device[0].item(),
        lambda on_device: on_device.unique(),
        lambda on_device: on_device.bincount(),
        lambda on_device: on_device[on_device > 0],
        lambda on_device: on_device[torch.tensor([0, 1])],
        lambda on_device: on_device.cpu(),
        lambda on_device: torch.ones(3).to(META),
    ],
    ids=["item", "unique", "bincount", "mask", "index", "copy back", "blocking copy"],
)
def test_what_would_wait_for_the_device_is_an_error_on_the_meta_device(operation):
    with NoWaits(), pytest.raises((RuntimeError, NotImplementedError)):
        operation(torch.ones(3, dtype=torch.long, device=META))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_loop_never_waits_for_the_gpu_before_the_optimizer_is_launched(tiny_config, tmp_path, monkeypatch):
    teacher_targets, step_if_finite, updates = loop.teacher_targets, loop.step_if_finite, []

    def targets(*args):
        updates.append(None)
        if len(updates) > 2:  # the first updates allocate memory and compile kernels
            torch.cuda.set_sync_debug_mode("error")
        return teacher_targets(*args)

    def step(*args):
        step_if_finite(*args)
        torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "teacher_targets", targets)
    monkeypatch.setattr(loop, "step_if_finite", step)
    try:
        loop.train(tiny_config(device="cuda", iterations=5, max_grad_norm=1.0), tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(updates) == 5
