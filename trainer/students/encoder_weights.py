"""Reads the weights of an encoder from a local file, whoever published it, and says where to get that file."""

import re
from collections.abc import Iterable
from pathlib import Path

import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data_cache.errors import UserError, one_line
from trainer.students.names import TIMM

_NESTED = ("state_dict", "model")
"""Keys under which published files nest the state dict."""
_PREFIXES = re.compile(r"^(?:(?:backbone|model|body)_)+")
"""Wrappers of OpenMMLab and timm."""


def published_at(encoder: str, tag: str) -> str:
    """The file that has the weights of an encoder of smp or timm, and its address."""
    if not encoder.startswith(TIMM):
        repository = smp.encoders.encoders[encoder]["pretrained_settings"][tag]["repo_id"]
        return f"model.safetensors from https://huggingface.co/{repository}"
    published = timm.models.get_pretrained_cfg(encoder.removeprefix(TIMM))
    if published and published.hf_hub_id:
        return f"model.safetensors from https://huggingface.co/{published.hf_hub_id}"
    return published.url if published and published.url else "its weights"


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a state dict, as `.safetensors` or as a file of `torch.save` that holds nothing but tensors.

    The file may have the names of timm, torchvision or OpenMMLab, and more tensors than the encoder, such as a head.

    Raises:
        UserError: the file cannot be read, or lacks a tensor of the encoder, or one has another shape.

    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = next((state[key] for key in _NESTED if key in state), state)
        names = match_names(state, nn.Module.state_dict(encoder))
        matched: dict[str, Tensor] = {name: state[published] for name, published in names.items()}
        # some of smp's encoders override `load_state_dict` with one that does not accept `strict`
        nn.Module.load_state_dict(encoder, matched, strict=True)
    except Exception as error:
        raise UserError(f"--encoder-weights {path}: is not a state dict of this encoder ({one_line(error)})") from None


def match_names(published: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """The published name of each of an encoder's tensors, by its name here; names without a counterpart are missing."""
    spelled = {_canonical(name): name for name in published}
    return {name: spelled[_canonical(name)] for name in names if _canonical(name) in spelled}


def _canonical(name: str) -> str:
    """One spelling for all publishers."""
    name = re.sub(r"mlp\.dwconv\.(weight|bias)$", r"mlp.dwconv.dwconv.\1", name)  # MSCAN
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)  # torchvision's first DenseNets
    return _PREFIXES.sub("", name.replace(".", "_"))  # timm flattens the names of an encoder's stages
