"""The names of students: architectures, encoders and encoder weights, without importing the packages that define them.

smp and timm take seconds to import, so their encoders are read from their source files.
"""

import re
from functools import cache
from pathlib import Path

from data_cache.errors import UsageError
from data_cache.messages import did_you_mean
from data_cache.system.environment import package_files

SEGNEXT, TIMM = "segnext", "tu-"
ARCHITECTURES = (
    *("deeplabv3", "deeplabv3plus", "dpt", "fpn", "linknet", "manet", "pan", "pspnet", "segformer", SEGNEXT),
    *("unet", "unetplusplus", "upernet"),
)
MSCAN = ("mscan_t", "mscan_s", "mscan_b", "mscan_l")
"""SegNeXt's encoders, which are ours."""


def check_encoder(name: str) -> None:
    """Raise UsageError for an encoder that neither smp nor timm has, with the nearest names."""
    if name.startswith(TIMM) and name.removeprefix(TIMM).split(".")[0] in timm_models():
        return
    if name in MSCAN or name in smp_encoders():
        return
    known = [*smp_encoders(), *MSCAN, *(f"{TIMM}{model}" for model in timm_models())]
    nearest = did_you_mean(name, known)
    raise UsageError(f"--encoder {name}: is not an encoder of smp; timm's encoders are named tu-NAME{nearest}")


def check_encoder_weights(name: str) -> None:
    """Raise UsageError for encoder weights that are neither a path nor a tag of any encoder."""
    if name == "none" or "/" in name or Path(name).suffix or Path(name).is_file() or name in smp_tags():
        return
    nearest = did_you_mean(name, [*smp_tags(), "none"])
    raise UsageError(f"--encoder-weights {name}: pass imagenet, none, or the path of a state dict{nearest}")


@cache
def smp_encoders() -> tuple[str, ...]:
    """The encoders of smp, from the keys of its tables."""
    return _names("segmentation_models_pytorch", "encoders/*.py", r'^ {4}"([\w.+-]+)": \{')


@cache
def smp_tags() -> tuple[str, ...]:
    """The pretrained tags of smp's encoders; each encoder has some of them."""
    return _names("segmentation_models_pytorch", "encoders/*.py", r'"([\w.+-]+)": \{\s*"repo_id"')


@cache
def timm_models() -> tuple[str, ...]:
    """The models of timm, without pretrained tags."""
    return _names("timm", "models/*.py", r"^@register_model\s*\ndef (\w+)\(")


def _names(package: str, files: str, pattern: str) -> tuple[str, ...]:
    sources = [file.read_text(encoding="utf-8") for file in package_files(package, files)]
    return tuple(sorted({name for source in sources for name in re.findall(pattern, source, re.MULTILINE)}))
