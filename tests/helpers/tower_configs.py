"""open_clip's own configs of towers from timm, with a text tower of one layer and the tokenizer that needs no files."""

import json

import torch
from tiny_inputs import tiny_clip

from pipeline.teacher.names import clip_configs


def write_config(folder, name):
    """The config as a JSON file: a real image tower, and a small text tower."""
    config = json.loads(clip_configs()[name].read_text())
    text = {name: value for name, value in config["text_cfg"].items() if not name.startswith(("hf_", "tokenizer"))}
    config["text_cfg"] = text | {"layers": 1, "vocab_size": 49408}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


@torch.no_grad()
def perturb(module):
    """Change all weights of an untrained model: its biases are zero and its norms and poolings are plain averages."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        spread = parameter.std().nan_to_num(0) if parameter.numel() > 1 else 0
        parameter.add_((0.3 * spread + 0.02) * torch.randn(parameter.shape, generator=generator))


def tower_clip(folder, name, size, **options):
    """A teacher with such a config and perturbed random weights."""
    clip = tiny_clip(config=write_config(folder, name), image_size=size, **options)
    perturb(clip.visual)
    return clip
