"""The student: any segmentation_models_pytorch network, with a head that projects into CLIP's joint space."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from data_cache.errors import UsageError, UserError, one_line
from data_cache.options import check_choice
from data_cache.system.downloads import hub_downloads
from trainer.config import TrainConfig
from trainer.students import mscan
from trainer.students.encoder_weights import load_encoder_weights, published_at
from trainer.students.names import ARCHITECTURES, SEGNEXT, TIMM, check_encoder
from trainer.students.segformer import accelerate
from trainer.students.segnext import SegNeXt

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
FINEST_STRIDE = 4
_NO_DECAY_NAMES = ("pos_embed", "position", "pos_block")
# as in mmsegmentation; smp's default is half as wide
_DECODERS = {"upernet": {"decoder_channels": 512}}
# by default timm's Swin accepts a single input size, and does not shift the windows of small feature maps
_SWIN = {"strict_img_size": False, "always_partition": True, "drop_path_rate": 0.3}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (nn.LayerNorm, nn.GroupNorm, *_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class StudentNetwork(nn.Module):
    """Dense features R in CLIP's joint space, at the decoder's stride but never finer than 4.

    Args:
        arch: smp architecture, or `segnext`.
        encoder: smp encoder, `tu-NAME` for timm's, or `mscan_t`, `_s`, `_b`, `_l`.
        weights: `imagenet` (or another pretrained tag), `none`, or the path of an encoder state dict.
        channels: width C of the joint space.

    Raises:
        UsageError, UserError: an unknown name, or weights that cannot be downloaded or do not match.

    """

    def __init__(self, arch: str, encoder: str, weights: str, channels: int) -> None:
        super().__init__()
        self.network: Any
        tag = _tag(encoder, weights)
        with hub_downloads() if tag else nullcontext("") as offline:
            self.network = accelerate(_create(arch, encoder, tag, offline))
            mean, std = _statistics(encoder, tag)
        if tag is None and weights != "none":
            load_encoder_weights(self.network.encoder, Path(weights))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))
        self.multiple = int(self.network.encoder.output_stride)
        width, stride = self._probe()
        self.stride = max(stride, FINEST_STRIDE)
        pool = nn.AvgPool2d(self.stride // stride) if stride < self.stride else nn.Identity()
        self.network.segmentation_head = nn.Sequential(pool, nn.Conv2d(width, channels, 1))

    def forward(
        self, images: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channel y x"]:
        """Features of RGB images in 0..255 whose sides are multiples of `multiple`."""
        return self.network((images.float() / 255 - self.mean) / self.std)

    @torch.no_grad()
    def _probe(self) -> tuple[int, int]:
        """The width and stride of the decoder's output."""
        shapes: list[torch.Size] = []
        hook = self.network.segmentation_head.register_forward_pre_hook(
            lambda _, inputs: shapes.append(inputs[0].shape)
        )
        side = 4 * self.multiple
        training = self.network.training
        self.network.eval()
        try:
            self.network(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"--encoder: does not accept images of any size ({one_line(error)}); choose another"
            ) from None
        finally:
            hook.remove()
            self.network.train(training)
        return shapes[0][1], side // shapes[0][2]


def check_size(network: StudentNetwork, config: TrainConfig, size: int | None) -> None:
    """Raise UsageError if the student cannot have this input size, or the loss stride is too large for it."""
    if size and size % network.multiple:
        raise UsageError(f"--size {size}: must be a multiple of {network.multiple} for this encoder")
    if size and config.loss_stride // 2 >= size:
        raise UsageError(f"--loss-stride {config.loss_stride}: is too large for {size} pixels")


def parameter_groups(
    module: nn.Module, lr: float, head_factor: float, weight_decay: float, slow: nn.Module | None = None
) -> list[dict]:
    """Group a module's parameters by learning rate (lr in `slow`, else lr x head_factor) and by weight decay."""
    no_decay = {id(p) for m in module.modules() if isinstance(m, _NORMS) for p in m.parameters(recurse=False)}
    no_decay |= {id(p) for name, p in module.named_parameters() if any(key in name for key in _NO_DECAY_NAMES)}
    slow_parameters = {id(p) for p in slow.parameters()} if slow else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in slow_parameters, id(parameter) in no_decay), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": lr * (1.0 if is_slow else head_factor),
            "weight_decay": 0.0 if without_decay else weight_decay,
        }
        for (is_slow, without_decay), parameters in groups.items()
    ]


def _tag(encoder: str, weights: str) -> str | None:
    """The pretrained tag to download, or None. Raises UsageError or UserError if `weights` is invalid."""
    if weights == "none" or Path(weights).is_file():
        return None
    if encoder in mscan.ENCODERS:
        raise UsageError(
            f"--encoder-weights {weights}: {encoder} has no weights to download; pass the path of its file, or none"
        )
    if "/" in weights or Path(weights).suffix:
        raise UserError(f"--encoder-weights {weights}: no such file; pass imagenet, none, or the path of a state dict")
    if encoder.startswith("tu-") and weights != "imagenet":
        # smp would silently load timm's default instead
        raise UsageError(f"--encoder-weights {weights}: timm's tags are part of the name; pass --encoder {encoder}.TAG")
    return weights


def _create(arch: str, encoder: str, tag: str | None, offline: str) -> nn.Module:
    check_choice("--arch", arch, ARCHITECTURES)
    # a model that the user has registered is not in timm's source files
    if not (encoder.startswith(TIMM) and timm.is_model(encoder.removeprefix(TIMM))):
        check_encoder(encoder)
    smp.encoders.encoders.update(mscan.ENCODERS)
    try:
        if arch == SEGNEXT:
            return SegNeXt(encoder, tag, classes=1)
        options = _DECODERS.get(arch, {}) | (_SWIN if encoder.startswith("tu-swin_") else {})
        pretrained = bool(tag) or None if encoder.startswith("tu-") else tag  # for timm, smp only tests for None
        return smp.create_model(arch, encoder_name=encoder, encoder_weights=pretrained, classes=1, **options)
    except KeyError:
        raise UsageError(
            f"--encoder {encoder}: has no --encoder-weights {tag or 'none'}, or does not fit --arch {arch}; choose "
            "another"
        ) from None
    except Exception as error:
        if tag and (offline or isinstance(error, OSError)):
            raise UserError(
                f"--encoder-weights {tag}: could not be downloaded ({offline or one_line(error)}); on another machine, "
                f"get {published_at(encoder, tag)}, and pass its path as --encoder-weights, or pass none"
            ) from None
        raise UserError(
            f"--arch {arch} --encoder {encoder} --encoder-weights {tag or 'none'}: cannot be built ({one_line(error)})"
        ) from None


def _statistics(encoder: str, tag: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The input mean and std of an encoder."""
    # for its own encoders, smp would query the Hub; without pretrained weights, ImageNet's statistics serve
    if tag is None and not encoder.startswith("tu-"):
        return IMAGENET
    params = smp.encoders.get_preprocessing_params(encoder, pretrained=tag or "imagenet")
    scale = params["input_range"][-1]
    return tuple(m / scale for m in params["mean"]), tuple(s / scale for s in params["std"])
