"""Checkpoints of untrained students with text features of the tiny CLIP, for tests that need no training."""

from pathlib import Path

import torch
from timm.models import generate_default_cfgs, register_model

# timm offers no public way to register a smaller Swin
from timm.models.swin_transformer import SwinTransformer, _cfg, _create_swin_transformer

from data_cache.splits import make_split
from pipeline.teacher.clip import FrozenCLIP
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.weights import CLIPSource
from trainer.card import make_card
from trainer.checkpoint import save
from trainer.config import TrainConfig
from trainer.students.network import StudentNetwork

CLASSES, UNSEEN, SIDE = ("sky", "grass", "tiger", "rose"), "tiger", 64
MICRO_SWIN = "tu-swin_micro"
default_cfgs = generate_default_cfgs({"swin_micro.untrained": _cfg(url="none")})


@register_model
def swin_micro(pretrained: bool = False, **given: object) -> SwinTransformer:
    """A Swin with two blocks per stage, the second with shifted windows, and few channels."""
    sizes = {"patch_size": 4, "window_size": 7, "embed_dim": 24, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 4)}
    return _create_swin_transformer("swin_tiny_patch4_window7_224", pretrained=False, **(sizes | given))


def text_of(names: tuple[str, ...], prompts: str = "single") -> torch.Tensor:
    """Text features of the tiny CLIP, with the prompts of the checkpoints."""
    return torch.from_numpy(_clip().encode_text(names, Prompts(prompts).templates))


def make_student(
    run: Path, arch: str = "fpn", encoder: str = "resnet18", text: torch.Tensor | None = None, **config: object
) -> Path:
    """A checkpoint of an untrained student; `text` stands in for the features of `CLASSES`."""
    torch.manual_seed(0)
    text = text_of(CLASSES) if text is None else text
    settings = TrainConfig(arch=arch, encoder=encoder, encoder_weights="none", **config)
    segmenter = StudentNetwork(arch, encoder, "none", text.shape[1])
    with torch.no_grad():
        for module in segmenter.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                # as after training: neither ones nor zeros
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    prompts = Prompts("single")
    about = {
        "dataset": {"name": "folder"},
        "clip": _clip().fingerprint(),
        "prompts": {"name": prompts.name, "templates": list(prompts.templates)},
        "recorded": {"root": None, "clip": CLIPSource("tiny").origin},
    }
    save(run, 1, segmenter, text, make_card(settings, make_split("folder", CLASSES, UNSEEN), SIDE, about), {})
    return run


def _clip() -> FrozenCLIP:
    return FrozenCLIP(CLIPSource("tiny", image_size=64), "fp32", torch.device("cpu"))
