"""A tiny ViT in a folder of timm's form, as a source of masks."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

ARCHITECTURE = "vit_small_patch14_dinov2"
SIZE, GRID, CHANNELS = 126, (9, 9), 48
"""Its input next to a CLIP of 128 px, its tokens and their channels."""
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.1]


def write_model(folder: Path, seed: int = 0) -> Path:
    """A DINOv2 of two blocks with random weights: `config.json` and weights."""
    arguments = {"embed_dim": CHANNELS, "depth": 2, "num_heads": 3, "img_size": 70, "init_values": 1.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(ARCHITECTURE, num_classes=0, **arguments)
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    published = {"tag": "tiny", "input_size": [3, 70, 70], "mean": MEAN, "std": STD, "num_classes": 0}
    config = {"architecture": ARCHITECTURE, "num_classes": 0, "model_args": arguments, "pretrained_cfg": published}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
