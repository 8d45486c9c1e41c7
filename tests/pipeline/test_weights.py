"""Sources of CLIP weights, and the errors if they cannot be loaded."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hub import CLOSED, SILENT, hub
from refusals import refused
from safetensors.torch import save_file
from tiny_inputs import CONFIG, CPU, random_image, tiny_clip

from data_cache.errors import UsageError
from pipeline.teacher.clip import FrozenCLIP, resolve_precision
from pipeline.teacher.names import clip_configs, pretrained_tags
from pipeline.teacher.weights import CLIPSource

IMAGES = random_image(0, 128, 128)[None]


@pytest.fixture(scope="module")
def state():
    """Weights other than those of `random`."""
    generator = torch.Generator().manual_seed(7)
    weights = tiny_clip().model.state_dict()
    return {
        name: value + 0.02 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
        for name, value in weights.items()
    }


@pytest.fixture(params=["safetensors", "pt"])
def checkpoint(request, state, tmp_path):
    path = tmp_path / f"weights.{request.param}"
    if request.param == "pt":
        torch.save(state, path)
    else:
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    return path


# -- random and local weights --------------------------------------------------------------------------------------


def test_random_weights_are_reproducible_and_keep_the_rng_state():
    torch.manual_seed(1)
    first = tiny_clip().weights_hash
    after = torch.rand(1)
    torch.manual_seed(2)
    assert tiny_clip().weights_hash == first
    torch.manual_seed(1)
    assert torch.rand(1) == after


def test_threads_load_the_same_random_weights_and_keep_the_rng_state():
    expected = tiny_clip().weights_hash
    torch.manual_seed(1)
    with ThreadPoolExecutor(4) as pool:
        assert {clip.weights_hash for clip in pool.map(lambda _: tiny_clip(), range(12))} == {expected}
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after


def test_local_checkpoint_is_loaded_completely(checkpoint, state):
    loaded = tiny_clip(checkpoint)
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    other = tiny_clip()
    other.model.load_state_dict(state)
    np.testing.assert_array_equal(loaded.encode(IMAGES).dense, other.encode(IMAGES).dense)
    assert (loaded.encode(IMAGES).dense != tiny_clip().encode(IMAGES).dense).any()


def test_weights_hash_depends_only_on_the_weights(tmp_path, state):
    torch.save(state, tmp_path / "a.pt")
    save_file(state, tmp_path / "b.safetensors")
    name = "visual.transformer.resblocks.2.mlp.c_proj.bias"
    nudged = {**state, name: state[name].clone()}
    nudged[name][5] = torch.nextafter(nudged[name][5], torch.tensor(9.0))  # a single bit
    torch.save(nudged, tmp_path / "c.pt")
    a, b, c = (tiny_clip(tmp_path / file).weights_hash for file in ("a.pt", "b.safetensors", "c.pt"))
    assert a == b == tiny_clip(tmp_path / "a.pt", precision="bf16").weights_hash
    assert len({a, c, tiny_clip().weights_hash}) == 3


def test_position_embeddings_are_resized_bicubically_to_another_image_size(tmp_path, state):
    torch.save(state, tmp_path / "w.pt")
    clip = tiny_clip(tmp_path / "w.pt", image_size=192)
    assert (clip.image_size, clip.grid) == (192, (12, 12))
    stored = state["visual.positional_embedding"]
    grid = stored[1:].reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (12, 12), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.cat([stored[:1], grid[0].flatten(1).T])
    torch.testing.assert_close(clip.model.visual.positional_embedding, expected)
    assert clip.encode(random_image(0, 192, 192)[None]).dense.shape == (1, 12, 12, 64)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_weights_load_at_another_image_size(tmp_path, state, half):
    rounded = {name: value.to(half) for name, value in state.items() if value.is_floating_point()}
    save_file({name: value.contiguous() for name, value in rounded.items()}, tmp_path / "half.safetensors")
    save_file({name: value.float().contiguous() for name, value in rounded.items()}, tmp_path / "same.safetensors")
    loaded = tiny_clip(tmp_path / "half.safetensors", image_size=256)
    assert {value.dtype for value in loaded.model.state_dict().values()} == {torch.float32}
    assert loaded.weights_hash == tiny_clip(tmp_path / "same.safetensors", image_size=256).weights_hash


def test_image_size_of_a_config_file_can_be_overridden():
    assert (tiny_clip().image_size, tiny_clip().grid) == (128, (8, 8))
    assert (tiny_clip(image_size=64).image_size, tiny_clip(image_size=64).grid) == (64, (4, 4))


def test_default_image_size_of_named_models_is_512(monkeypatch):
    sizes = []

    def create_model(name, pretrained, force_image_size, force_preprocess_cfg):
        sizes.append(force_image_size)
        raise RuntimeError("enough")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    refused(CLIPSource("ViT-B-16", "random").load, "enough")
    refused(CLIPSource("ViT-B-16", "random", 224).load, "enough")
    assert sizes == [512, 224]


def test_loading_restores_the_logging_level():
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    try:
        tiny_clip()
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(before)


# -- refusals ------------------------------------------------------------------------------------------------------


def clip(name, weights="random", image_size=None):
    return lambda: FrozenCLIP(CLIPSource(str(name), str(weights), image_size), "fp32", CPU)


@pytest.fixture
def no_model(monkeypatch):
    """These errors must not build a model or download anything."""
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("a model was built"))


@pytest.mark.usefixtures("no_model")
class TestBeforeAModelIsBuilt:
    def test_unknown_model_name_is_refused_with_suggestions(self):
        refused(clip("ViT-B-61"), "--clip", "'ViT-B-61'", "did you mean", "ViT-B-16", kind=UsageError)
        refused(clip("zzzzzz"), "--clip", "'zzzzzz'", kind=UsageError)

    @pytest.mark.parametrize("name", ["ViT-B-16", "ViT-L-14", "RN50"])
    def test_openai_weights_without_quickgelu_are_refused_with_the_fix(self, name):
        refused(clip(name, "openai"), f"--clip {name}", "openai", "-quickgelu", kind=UsageError)

    def test_other_weights_in_a_quickgelu_model_are_refused(self):
        refused(clip("ViT-B-16-quickgelu", "laion2b_s34b_b88k"), "--clip-weights laion2b_s34b_b88k", kind=UsageError)

    def test_local_openai_file_without_quickgelu_is_refused(self, tmp_path):
        (tmp_path / "vit_b_16-openai.pt").write_bytes(b"")
        refused(clip("ViT-B-16", tmp_path / "vit_b_16-openai.pt"), "--clip ViT-B-16", "-quickgelu", kind=UsageError)

    def test_unknown_tag_is_refused_with_the_known_ones(self):
        refused(clip("ViT-B-16", "laion3b"), "--clip-weights laion3b", "openai", "laion400m_e31", kind=UsageError)

    @pytest.mark.parametrize("name", ["ViT-B-16", CONFIG])
    def test_missing_checkpoint_is_refused(self, name, tmp_path):
        refused(clip(name, tmp_path / "gone.pt"), "--clip-weights", tmp_path / "gone.pt", kind=UsageError)

    @pytest.mark.parametrize("text", ["{broken", "[1, 2]", '"text"', '{"embed_dim": 64}', '{"model_cfg": 3}', ""])
    def test_broken_config_is_refused(self, text, tmp_path):
        (tmp_path / "own.json").write_text(text)
        refused(clip(tmp_path / "own.json"), "--clip", tmp_path / "own.json", kind=UsageError)

    def test_missing_config_is_refused(self, tmp_path):
        refused(clip(tmp_path / "gone.json"), "--clip", tmp_path / "gone.json", kind=UsageError)


def test_resnet_is_refused():
    refused(clip("RN50", image_size=224), "--clip RN50", "ViT", kind=UsageError)


def test_resnet_config_is_refused(tmp_path):
    config = json.loads(Path(CONFIG).read_text())
    config["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (tmp_path / "resnet.json").write_text(json.dumps(config))
    refused(clip(tmp_path / "resnet.json"), "--clip resnet", "vision transformer", kind=UsageError)


@pytest.mark.parametrize(
    "pooling",
    [
        {"attentional_pool": True, "attn_pooler_heads": 4},  # CoCa's
        {"pool_type": "avg"},
        {"final_ln_after_pool": True},
    ],
)
def test_pooled_image_embedding_is_refused(tmp_path, pooling):
    config = json.loads(Path(CONFIG).read_text())
    config["vision_cfg"].update(pooling)
    (tmp_path / "pooled.json").write_text(json.dumps(config))
    refused(clip(tmp_path / "pooled.json"), "--clip pooled", "pooled, not a CLS token", kind=UsageError)


@pytest.mark.parametrize("size", [100, 129, 8])
def test_image_size_must_be_a_multiple_of_the_patch_size(size):
    refused(clip(CONFIG, image_size=size), f"--image-size {size}", "16", kind=UsageError)


def test_mismatched_checkpoint_is_refused_with_the_reason(tmp_path, state):
    name = "visual.class_embedding"
    for file, change in {"short.pt": {name: torch.zeros(7)}, "unknown.pt": {"visual.unknown": torch.zeros(1)}}.items():
        torch.save({**state, **change}, tmp_path / file)
        refused(clip(CONFIG, tmp_path / file), "--clip-weights", tmp_path / file, *change)
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "incomplete.pt")
    refused(clip(CONFIG, tmp_path / "incomplete.pt"), "--clip-weights", tmp_path / "incomplete.pt", name)


@pytest.mark.parametrize("file", ["junk.pt", "junk.safetensors"])
def test_file_that_is_not_a_checkpoint_is_refused(tmp_path, file):
    (tmp_path / file).write_bytes(b"not weights at all")
    refused(clip(CONFIG, tmp_path / file), "--clip-weights", tmp_path / file)


@pytest.mark.parametrize("answer", [CLOSED, SILENT, 503, 404])
def test_failed_download_is_refused_at_once_with_the_file_to_get(answer, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", json.loads(Path(CONFIG).read_text()))
    monkeypatch.setitem(clip_configs(), "small", Path(CONFIG))
    monkeypatch.setitem(pretrained_tags(), "small", {"laion": False})
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", {"laion": {"hf_hub": "someone/small/"}})
    with hub(answer, tmp_path, monkeypatch) as served:
        refused(
            clip("small", "laion"),
            *("--clip-weights laion", "https://huggingface.co/someone/small", "pass its path as --clip-weights"),
        )
    assert len(served) <= (1 if answer == 503 else 6)
    assert not caplog.records


@pytest.mark.parametrize(
    ("able", "precision"),
    [({}, "fp32"), ({"avx512_f": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")],
)
def test_auto_precision_is_bf16_only_on_cpus_that_support_it(monkeypatch, able, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "avx512_bf16": False} | able)
    assert resolve_precision("auto", CPU) == precision


def test_unknown_precision_is_refused():
    assert [resolve_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    refused(lambda: resolve_precision("fp8", CPU), "--precision fp8", "bf16", kind=UsageError)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("ViT-B-16-quickgelu", "openai"), ("PE-Core-T-16-384", "meta"), ("ViT-B-16-SigLIP2", "webli"), ("tiny", "scenes")],
)
def test_default_weights_are_the_only_tag_or_openai(name, weights):
    assert CLIPSource(name).weights == weights
