"""Tokenizers that a config names: from a folder, or refused in one line if they cannot be downloaded."""

import json
import sys

import numpy as np
import pytest
from hub import CLOSED, hub
from refusals import refused
from safetensors.torch import save_file
from tiny_inputs import random_image, tiny_clip
from tokenizers import Tokenizer, models, pre_tokenizers
from tower_configs import write_config
from transformers import PreTrainedTokenizerFast

from pipeline.teacher.weights import CLIPSource

WORDS = ("<pad>", "<unk>", "a", "photo", "of", "sky", "tree")


@pytest.fixture
def folder(tmp_path):
    """A folder with a config, a small tokenizer, and weights, like a repository of a SigLIP."""
    path = tmp_path / "model"
    vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="<unk>", pad_token="<pad>").save_pretrained(path)
    config = json.loads(write_config(tmp_path, "PE-Core-T-16-384").read_text())
    tokenizer = {"hf_tokenizer_name": str(path), "vocab_size": len(WORDS), "pool_type": "last"}
    config["text_cfg"] |= tokenizer | {"tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True}
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": half}))
    model, _ = CLIPSource(str(path / "open_clip_config.json"), "random").load()
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, path / "open_clip_model.safetensors")
    return path


def test_a_config_file_may_name_a_folder_with_its_tokenizer(folder):
    clip = tiny_clip(config=folder / "open_clip_config.json", image_size=32)
    assert clip.tokenizer(["A photo of a sky."])[0].tolist()[:6] == [2, 3, 4, 2, 5, 0]
    sky, tree = clip.encode_text(["sky", "tree"], ["a photo of a {}"])
    assert np.abs(sky - tree).max() > 1e-3


def test_a_local_folder_gives_config_tokenizer_and_weights(folder, monkeypatch):
    expected = tiny_clip(config=folder / "open_clip_config.json", image_size=32)
    monkeypatch.chdir(folder.parent)
    clip = tiny_clip(config="local-dir:model", image_size=32)
    assert clip.weights_hash == expected.weights_hash
    assert clip.mean == (0.5, 0.5, 0.5)
    assert clip.origin["clip"] == f"local-dir:{folder}"
    picture = random_image(0, 32, 32)[None]
    np.testing.assert_array_equal(clip.encode(picture).dense, expected.encode(picture).dense)
    names = ["sky", "tree"], ["a photo of a {}"]
    np.testing.assert_array_equal(clip.encode_text(*names), expected.encode_text(*names))


def test_a_tokenizer_that_cannot_be_downloaded_is_refused_with_what_to_download(tmp_path, monkeypatch):
    with hub(CLOSED, tmp_path, monkeypatch):
        refused(
            CLIPSource("ViT-B-32-SigLIP2-256", "random", 32).load,
            "--clip ViT-B-32-SigLIP2-256: its tokenizer",
            "https://huggingface.co/timm/ViT-B-32-SigLIP2-256",
            "local-dir:FOLDER",
        )


def test_a_tokenizer_without_the_package_that_reads_it_is_refused_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with hub(CLOSED, tmp_path, monkeypatch):
        refused(CLIPSource("ViT-B-16-SigLIP", "random", 32).load, "--clip ViT-B-16-SigLIP", "clipteacher[siglip]")
