"""The setting is inductive: nothing of an unseen class but its name is used, and that only at inference."""

import numpy as np
import pytest
import torch
import zarr
from command_line import TINY
from pictures import CLASSES, draw_folder
from PIL import Image
from safetensors.torch import load_file

from pipeline.precompute import Settings, execute, plan
from pipeline.weights import CLIPSource
from trainer.config import TrainConfig
from trainer.loop import train

UNSEEN = ("disc", "stripe")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Two datasets of the same pictures: in the second unseen pixels are void, and unseen names are exchanged."""
    told, hidden = (tmp_path_factory.mktemp(name) for name in ("told", "hidden"))
    for root in (told, hidden):
        draw_folder(root, {"train": 6})
    a, b = (CLASSES.index(name) for name in UNSEEN)
    changed = 0
    for file in hidden.glob("labels/*/*.png"):
        label = np.array(Image.open(file))
        changed += np.isin(label, (a, b)).sum()
        Image.fromarray(np.where(np.isin(label, (a, b)), 255, label).astype(np.uint8)).save(file)
    assert changed
    names = list(CLASSES)
    names[a], names[b] = names[b], names[a]
    (hidden / "classes.txt").write_text("\n".join(names) + "\n")
    return told, hidden


@pytest.fixture(scope="module")
def caches(worlds):
    found = []
    for root in worlds:
        settings = Settings(
            "folder",
            root / "c.zarr",
            root,
            clip=CLIPSource(TINY[1], "random"),
            unseen=",".join(UNSEEN),
            device="cpu",
            precision="fp32",
        )
        execute(plan(settings)).check(0)
        found.append(settings.cache)
    return found


def test_labels_and_names_of_unseen_classes_leave_no_trace_in_features_and_masks(caches):
    told, hidden = (zarr.open_group(cache, mode="r") for cache in caches)
    for name in ("cls", "dense", "masks/default/label", "masks/default/count", "view/box", "view/flip"):
        assert (told[name][:] == hidden[name][:]).all(), name
    assert (told["masks/default/label"][:] != 255).any()


def test_they_leave_no_trace_in_any_training_step(caches, tmp_path):
    steps, weights = [], []
    for cache in caches:
        lines, out = [], tmp_path / f"run{len(steps)}"
        config = TrainConfig(
            cache=str(cache), encoder_weights="none", size=64, iterations=4, batch_size=3, device="cpu", workers=0
        )
        train(config, out, tell=lines.append)
        steps.append([{name: value for name, value in line.items() if name != "seconds"} for line in lines])
        weights.append(load_file(next(out.glob("step_*/model.safetensors"))))
    assert steps[0] == steps[1]
    text = [one.pop("text") for one in weights]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # only the names themselves differ, and with them what the checkpoint knows of unseen classes
    differs = (text[0] != text[1]).any(dim=1).tolist()
    assert [name for name, one in zip(CLASSES, differs, strict=True) if one] == list(UNSEEN)
