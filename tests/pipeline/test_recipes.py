"""Dense recipes against a numpy version of one block, written from the papers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refused
from scipy.special import erf, softmax
from tiny_inputs import CONFIG, random_image, tiny_clip

from data_cache.errors import UsageError
from pipeline.teacher.recipes import OUTPUT, RECIPES

IMAGES = np.stack([random_image(seed, 128, 128) for seed in range(2)])
GRID, HEADS = (8, 8), 3
NAMES = [name for name in RECIPES if name != OUTPUT]


@pytest.fixture(scope="module")
def clip():
    """A CLIP whose biases and norms are not those of an untrained one."""
    clip = tiny_clip()
    perturb(clip)
    return clip


def perturb(clip):
    generator = torch.Generator().manual_seed(0)
    for parameter in clip.visual.parameters():
        parameter.add_(0.3 * parameter.std().nan_to_num(1.0) * torch.randn(parameter.shape, generator=generator))
        if parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module")
def last_input(clip):
    """The input of the last block (image, token, channel), and the weights, in float64."""
    inputs = []
    block = clip.visual.transformer.resblocks[-1]
    hook = block.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    clip.encode(IMAGES)
    hook.remove()
    state = {name: value.double().numpy() for name, value in block.state_dict().items()}
    outside = {name: value.double().numpy() for name, value in clip.visual.state_dict().items() if "." not in name}
    outside |= {f"ln_post.{k}": v.double().numpy() for k, v in clip.visual.ln_post.state_dict().items()}
    return inputs[0].double().numpy(), state, outside


def norm(x, weights, name):
    centered = x - x.mean(-1, keepdims=True)
    return (
        centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * weights[f"{name}.weight"]
        + weights[f"{name}.bias"]
    )


def oracle(recipe, x, weights, outside):
    """The dense tokens of one image: (token, channel) float64 -> (y, x, channel)."""
    y = norm(x, weights, "ln_1")
    qkv = y @ weights["attn.in_proj_weight"].T + weights["attn.in_proj_bias"]
    width = y.shape[1] // HEADS
    out = np.zeros_like(y)
    for head in range(HEADS):
        q, k, v = (qkv[:, part * y.shape[1] :][:, head * width : (head + 1) * width] for part in range(3))
        scores = {"q": q @ q.T / np.sqrt(width), "k": k @ k.T / np.sqrt(width)}
        if recipe == "maskclip":
            attended = v
        elif recipe == "sclip":
            attended = (softmax(scores["q"], axis=1) + softmax(scores["k"], axis=1)) @ v
        elif recipe == "clearclip":
            attended = softmax(scores["q"], axis=1) @ v
        else:
            window = np.zeros((len(y), len(y)))
            for a in range(GRID[0] * GRID[1]):
                for b in range(GRID[0] * GRID[1]):
                    (ay, ax), (by, bx) = divmod(a, GRID[1]), divmod(b, GRID[1])
                    window[1 + a, 1 + b] = np.exp(-((ay - by) ** 2 + (ax - bx) ** 2) / (2 * 5.0**2))
            attended = softmax(scores["k"] + window, axis=1) @ v
        out[:, head * width : (head + 1) * width] = attended
    tokens = out @ weights["attn.out_proj.weight"].T + weights["attn.out_proj.bias"]
    if recipe == "sclip":
        tokens = x + tokens
        hidden = norm(tokens, weights, "ln_2") @ weights["mlp.c_fc.weight"].T + weights["mlp.c_fc.bias"]
        hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
        tokens = tokens + hidden @ weights["mlp.c_proj.weight"].T + weights["mlp.c_proj.bias"]
    return (norm(tokens, outside, "ln_post")[1:] @ outside["proj"]).reshape(*GRID, -1)


@pytest.mark.parametrize("recipe", NAMES)
def test_dense_tokens_match_numpy(last_input, recipe):
    other = tiny_clip(recipe=recipe)
    perturb(other)
    x, weights, outside = last_input
    expected = np.stack([oracle(recipe, image, weights, outside) for image in x])
    np.testing.assert_allclose(other.encode(IMAGES).dense.astype(float), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("recipe", NAMES)
def test_cls_tokens_do_not_depend_on_the_recipe(recipe, clip):
    other = tiny_clip(recipe=recipe)
    perturb(other)
    # computed with one query instead of all: equal but for the rounding of fp32, and then of float16
    np.testing.assert_allclose(other.encode(IMAGES).cls, clip.encode(IMAGES).cls, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recipe", NAMES)
def test_the_last_block_runs_for_no_token_but_those_needed(recipe):
    clip, seen = tiny_clip(recipe=recipe), []
    block = clip.visual.transformer.resblocks[-1]
    block.register_forward_hook(lambda *_: seen.append("whole block"))
    block.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    clip.encode(IMAGES)
    assert seen == [1] + [1 + GRID[0] * GRID[1]] * (recipe == "sclip")


def test_recipes_differ():
    tokens = [tiny_clip(recipe=recipe).encode(IMAGES).dense.astype(float) for recipe in RECIPES]
    for number, one in enumerate(tokens):
        for other in tokens[:number]:
            assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("recipe", NAMES)
def test_half_precision_is_close_to_fp32(recipe):
    full, half = (tiny_clip(recipe=recipe, precision=p).encode(IMAGES).dense for p in ("fp32", "bf16"))
    a, b = (x.reshape(-1, x.shape[-1]).astype(float) for x in (full, half))
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.998


def test_the_recipe_is_part_of_the_fingerprint():
    assert [tiny_clip(recipe=recipe).fingerprint()["dense_recipe"] for recipe in RECIPES] == list(RECIPES)


@pytest.mark.parametrize(
    ("change", "reason"), [({"layers": 1}, "single block"), ({"qk_norm": True, "block_type": "custom"}, "another kind")]
)
def test_a_tower_that_a_recipe_does_not_fit_is_refused(tmp_path, change, reason):
    config = json.loads(Path(CONFIG).read_text())
    config["vision_cfg"] |= change
    (tmp_path / "other.json").write_text(json.dumps(config))
    tiny_clip(config=tmp_path / "other.json")
    refused(
        lambda: tiny_clip(config=tmp_path / "other.json", recipe="sclip"),
        "--dense-recipe sclip",
        reason,
        kind=UsageError,
    )
