"""Image towers from timm give what open_clip's `encode_image` and their own heads give."""

import json

import numpy as np
import open_clip
import pytest
import torch
from refusals import refused
from safetensors.torch import save_file
from tiny_inputs import random_image, tiny_clip
from torch.nn import functional as F
from tower_configs import tower_clip, write_config

from data_cache.errors import UsageError
from pipeline.teacher.weights import CLIPSource

SLOW = pytest.mark.slow
FAMILIES = [
    ("EVA02-B-16", 16),
    ("ViT-B-32-SigLIP2-256", 32),
    ("PE-Core-T-16-384", 16),
    ("MobileCLIP2-S0", 32),
    ("ViTamin-S", 16),
    ("vit_medium_patch16_gap_256", 16),
    ("convnext_tiny", 32),
    pytest.param("MobileCLIP2-B", 16, marks=SLOW),
    pytest.param("MobileCLIP2-L-14", 14, marks=SLOW),
    pytest.param("MobileCLIP2-S3", 64, marks=SLOW),
    pytest.param("ViT-B-16-SigLIP", 16, marks=SLOW),
]
"""Models with their patches; three patches a side are enough."""
WITHOUT_PREFIX = [
    ("ViT-B-32-SigLIP2-256", 32),
    ("MobileCLIP2-S0", 32),
    ("ViTamin-S", 16),
    ("vit_medium_patch16_gap_256", 16),
    ("convnext_tiny", 32),
]


def images(size, count=2):
    return np.stack([random_image(seed, size, size) for seed in range(count)])


def preprocessed(clip, pictures):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    return (torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255 - mean) / std


def assert_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found.astype(float), expected, atol=2e-3 * scale)


@torch.no_grad()
def alone(visual, pixels):
    """What the head makes of each token of the last layer, as the only one of its image."""
    trunk, cells = visual.trunk, visual.trunk.forward_features(pixels)
    if cells.ndim == 4:
        rows = [[cells[:, :, y, x, None, None] for x in range(cells.shape[3])] for y in range(cells.shape[2])]
    else:
        tokens = trunk.forward_intermediates(pixels, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)[0]
        side = round(tokens.shape[1] ** 0.5)
        rows = [[tokens[:, [y * side + x]] for x in range(side)] for y in range(side)]
    heads = [torch.stack([visual.head(trunk.forward_head(cell)) for cell in row], dim=1) for row in rows]
    return torch.stack(heads, dim=1).numpy()


@pytest.mark.parametrize(("name", "patch"), FAMILIES)
def test_a_tower_gives_open_clips_embedding_and_each_token_through_its_head(tmp_path, name, patch):
    clip, pictures = tower_clip(tmp_path, name, 3 * patch), images(3 * patch)
    assert (clip.patch, clip.grid, clip.image_size) == (patch, (3, 3), 3 * patch)
    reference = open_clip.create_model(local_dir(tmp_path, name), force_image_size=3 * patch).eval()
    reference.load_state_dict(clip.model.state_dict())
    pixels = preprocessed(clip, pictures)
    found = clip.encode(pictures)
    with torch.no_grad():
        assert_close(found.cls, reference.encode_image(pixels).numpy())
    assert_close(found.dense, alone(reference.visual, pixels))
    assert found.cls.shape[1] == found.dense.shape[3] == clip.channels
    assert clip.encode_text(["sky"], ["a photo of a {}"]).shape == (1, clip.channels)
    again = clip.encode(pictures)
    np.testing.assert_array_equal(again.cls, found.cls)
    np.testing.assert_array_equal(again.dense, found.dense)


def local_dir(folder, name):
    (folder / "reference").mkdir()
    content = {"model_cfg": json.loads((folder / f"{name}.json").read_text())}
    (folder / "reference/open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}/reference"


@pytest.mark.parametrize(("name", "patch"), WITHOUT_PREFIX)
def test_the_dense_token_of_an_image_of_one_patch_is_its_embedding(tmp_path, name, patch):
    clip = tower_clip(tmp_path, name, patch)
    found = clip.encode(images(patch))
    assert found.dense.shape[1:3] == (1, 1)
    assert_close(found.dense[:, 0, 0], found.cls.astype(float))


@pytest.mark.parametrize(
    ("name", "patch"),
    [
        ("EVA02-B-16", 16),
        ("PE-Core-T-16-384", 16),
        ("MobileCLIP2-S0", 32),
        pytest.param("ViT-B-32-SigLIP2-256", 32, marks=SLOW),
        pytest.param("MobileCLIP2-B", 16, marks=SLOW),
    ],
)
def test_half_precision_is_close_to_fp32(tmp_path, name, patch):
    clips = (tower_clip(tmp_path, name, 2 * patch, precision=precision) for precision in ("fp32", "bf16"))
    full, half = (clip.encode(images(2 * patch)) for clip in clips)
    for one, other in ((full.cls, half.cls), (full.dense, half.dense)):
        a, b = (x.reshape(-1, x.shape[-1]).astype(float) for x in (one, other))
        assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.995


@pytest.mark.parametrize(("name", "patch"), [("PE-Core-T-16-384", 16), ("vit_medium_patch16_gap_256", 16)])
def test_dense_tokens_are_in_row_major_order(tmp_path, name, patch):
    clip = tower_clip(tmp_path, name, 3 * patch)
    gray = np.full((1, 3 * patch, 3 * patch, 3), 120, np.uint8)
    changed = gray.copy()
    changed[0, :patch, 2 * patch :] = random_image(1, patch, patch)
    before, after = (clip.encode(picture).dense[0].astype(float) for picture in (gray, changed))
    distance = np.linalg.norm(after - before, axis=-1)
    assert np.unravel_index(distance.argmax(), (3, 3)) == (0, 2)


# -- image size and normalization ----------------------------------------------------------------------------------


def test_position_embeddings_of_a_checkpoint_are_resized_bicubically(tmp_path):
    config = write_config(tmp_path, "PE-Core-T-16-384")
    native = tiny_clip(config=config)
    assert (native.image_size, native.grid) == (384, (24, 24))
    state = {name: value.contiguous() for name, value in native.model.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    clip = tiny_clip(tmp_path / "w.safetensors", config=config, image_size=64)
    stored = state["visual.trunk.pos_embed"]
    grid = stored[:, 1:].reshape(1, 24, 24, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True, align_corners=False)
    expected = torch.cat([stored[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(clip.model.visual.trunk.pos_embed.data, expected)


def test_image_size_of_a_config_file_is_the_size_of_its_tower(tmp_path):
    config = write_config(tmp_path, "PE-Core-T-16-384")
    content = json.loads(config.read_text())
    content["vision_cfg"]["image_size"] = 48
    config.write_text(json.dumps(content))
    assert tiny_clip(config=config).encode(images(48)).dense.shape[:3] == (2, 3, 3)


@pytest.mark.parametrize(
    ("name", "native", "mean"), [("PE-Core-T-16-384", 384, 0.5), ("ViT-S-16-alt", 224, 0.48145466)]
)
def test_a_checkpoint_of_a_named_model_gets_the_mean_of_its_published_weights(name, native, mean, tmp_path):
    model, _ = CLIPSource(name, "random", native).load()
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, tmp_path / "w.safetensors")
    for weights in ("random", str(tmp_path / "w.safetensors")):
        model, _ = CLIPSource(name, weights, 32).load()
        assert open_clip.get_model_preprocess_cfg(model)["mean"][0] == mean


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("swin_base_patch4_window7_224", "SwinTransformer"),
        ("vit_relpos_medium_patch16_cls_224", "VisionTransformerRelPos"),
    ],
)
def test_a_tower_without_known_tokens_is_refused(tmp_path, name, reason):
    refused(lambda: tiny_clip(config=write_config(tmp_path, name)), f"--clip {name}", reason, kind=UsageError)


def test_patches_that_are_not_square_are_refused(tmp_path):
    config = write_config(tmp_path, "PE-Core-T-16-384")
    clip = tiny_clip(config=config, image_size=64)
    clip.model.visual.trunk.patch_embed.patch_size = (16, 32)
    from pipeline.teacher.towers import open_tower

    refused(lambda: open_tower(clip.model.visual, "output", "own"), "--clip own", "not square", kind=UsageError)


def test_an_image_size_that_is_not_a_multiple_of_the_patch_is_refused(tmp_path):
    for name in ("PE-Core-T-16-384", "MobileCLIP2-S0"):
        config = write_config(tmp_path, name)
        refused(lambda: tiny_clip(config=config, image_size=72), "--image-size 72", "multiple", kind=UsageError)  # noqa: B023


def test_recipes_are_refused_for_towers_from_timm(tmp_path):
    config = write_config(tmp_path, "PE-Core-T-16-384")
    refused(
        lambda: tiny_clip(config=config, image_size=32, recipe="sclip"),
        "--dense-recipe sclip: PE-Core-T-16-384",
        "timm",
        "use output",
        kind=UsageError,
    )
