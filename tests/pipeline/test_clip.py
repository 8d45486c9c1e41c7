"""The frozen teacher computes what open_clip itself computes."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from refusals import refused
from tiny_inputs import CONFIG, random_image, tiny_clip
from torch._dynamo.exc import BackendCompilerFailed  # private; `pipeline.teacher.clip` catches its base class

from data_cache.errors import UsageError
from pipeline.teacher.clip import MAX_CONCURRENT_BATCHES, FrozenCLIP, concurrent_batches
from pipeline.teacher.prompts import Prompts
from pipeline.teacher.protocol import DeviceFeatures
from pipeline.teacher.weights import CLIPSource

IMAGES = np.stack([random_image(seed, 128, 128) for seed in range(3)])
CLASSES, TEMPLATES = ["sky", "garden gnome"], ["a photo of a {}", "this is the {} in the scene."]
MEAN_AND_STD = (np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711]))
"""CLIP's mean and standard deviation, as open_clip publishes them (OPENAI_DATASET_MEAN and _STD)."""


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


@pytest.fixture(scope="module")
def reference(clip, tmp_path_factory):
    """open_clip's own model with the same config and weights."""
    folder = tmp_path_factory.mktemp("reference")
    content = {"model_cfg": json.loads(Path(CONFIG).read_text())}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    model = open_clip.create_model(f"local-dir:{folder}")
    model.load_state_dict(clip.model.state_dict())
    return model.eval()


def preprocessed(images):
    mean, std = MEAN_AND_STD
    pixels = (images / 255.0 - mean) / std
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()


def assert_equal_to_float16(found, expected):
    """Equal up to one step of float16, with a tolerance for float32 rounding near zero."""
    assert found.dtype == np.float16
    expected = expected.detach().numpy().astype(np.float64)
    assert found.shape == expected.shape
    step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64)
    assert (np.abs(found - expected) <= step + 2e-6).all()


# -- image features ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_cls_is_open_clips_image_embedding_in_float16(clip, reference):
    assert_equal_to_float16(clip.encode(IMAGES).cls, reference.encode_image(preprocessed(IMAGES)))


def test_cls_is_not_normalized(clip):
    assert np.ptp(np.linalg.norm(clip.encode(IMAGES).cls.astype(float), axis=1)) > 1e-3


@torch.no_grad()
def test_dense_tokens_are_projected_patch_tokens_of_the_last_block(clip, reference):
    blocks = []
    hook = reference.visual.transformer.resblocks[-1].register_forward_hook(lambda *call: blocks.append(call[-1]))
    reference.encode_image(preprocessed(IMAGES))
    hook.remove()
    norm = reference.visual.ln_post
    patches = blocks[0][:, 1:]
    centered = patches - patches.mean(-1, keepdim=True)
    scaled = centered / (centered.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    assert_equal_to_float16(clip.encode(IMAGES).dense, (scaled @ reference.visual.proj).reshape(3, 8, 8, 64))


@pytest.mark.parametrize(("row", "column"), [(0, 0), (2, 5), (5, 2), (7, 7)])
def test_dense_tokens_are_in_row_major_order(row, column):
    clip = tiny_clip()
    clip.model.visual.positional_embedding.zero_()  # now all gray patches give the same token
    image = np.full((1, 128, 128, 3), 120, np.uint8)
    image[0, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = random_image(1, 16, 16)
    dense = clip.encode(image).dense[0].astype(float)
    distance = np.linalg.norm(dense - np.median(dense, axis=(0, 1)), axis=-1)
    assert np.unravel_index(distance.argmax(), (8, 8)) == (row, column)
    assert np.sort(distance.ravel())[-2] < distance.max() / 10


def test_features_do_not_depend_on_the_batch(clip):
    alone, together = clip.encode(IMAGES[1:2]), clip.encode(IMAGES)
    np.testing.assert_allclose(alone.cls[0].astype(float), together.cls[1].astype(float), atol=2e-3)
    np.testing.assert_allclose(alone.dense[0].astype(float), together.dense[1].astype(float), atol=4e-3)


def test_clip_is_frozen_and_in_evaluation_mode(clip):
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert not any(module.training for module in clip.model.modules())


def test_patch_dropout_is_disabled(tmp_path):
    config = json.loads(Path(CONFIG).read_text())
    config["vision_cfg"]["patch_dropout"] = 0.5
    (tmp_path / "dropping.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(
        tiny_clip(config=tmp_path / "dropping.json").encode(IMAGES).dense, tiny_clip().encode(IMAGES).dense
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_fp32(clip, precision):
    full, half = clip.encode(IMAGES), tiny_clip(precision=precision).encode(IMAGES)
    for one, other in ((full.cls, half.cls), (full.dense, half.dense)):
        assert other.dtype == np.float16
        a, b = (x.reshape(-1, 64).astype(float) for x in (one, other))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() > 0.999
    assert (full.dense != half.dense).any()


def test_text_tower_stays_in_fp32(clip):
    texts = [model.encode_text(CLASSES, TEMPLATES) for model in (clip, tiny_clip(precision="bf16"))]
    np.testing.assert_array_equal(*texts)


def test_finite_detects_infinity_and_nan():
    cls, dense = torch.zeros(5, 3, dtype=torch.float16), torch.zeros(5, 2, 2, 3, dtype=torch.float16)
    dense[1, 1, 0, 2], dense[3, 0, 1, 1], cls[4, 2] = np.inf, np.nan, -np.inf
    assert DeviceFeatures(cls, dense).finite().tolist() == [True, False, True, False, False]


def test_features_beyond_float16_are_not_finite():
    clip = tiny_clip()
    clip.model.visual.proj.mul_(1e6)
    assert not clip.forward(IMAGES).finite().any()


def test_device_and_host_features_are_equal(clip):
    on_device, features = clip.forward(IMAGES), clip.encode(IMAGES)
    assert features.cls.dtype == features.dense.dtype == np.float16
    np.testing.assert_array_equal(on_device.cls.numpy(), features.cls)
    np.testing.assert_array_equal(on_device.dense.numpy(), features.dense)


# -- text features -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_text_feature_is_the_normalized_mean_of_normalized_prompts(clip, reference):
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    expected = []
    for name in CLASSES:
        features = [reference.encode_text(tokenizer([t.replace("{}", name)]))[0].double() for t in TEMPLATES]
        mean = sum(feature / feature.norm() for feature in features) / len(features)
        expected.append((mean / mean.norm()).numpy())
    found = clip.encode_text(CLASSES, TEMPLATES)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_threads_encode_texts_with_one_clip_at_once(clip):
    names = ("sky", "a long name of many words", "sea and sand", "disc")
    expected = clip.encode_text(names, TEMPLATES)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: clip.encode_text(names, TEMPLATES), range(40)):
            np.testing.assert_array_equal(found, expected)


def test_prompts_are_averaged_by_direction():
    clip = tiny_clip()
    with torch.inference_mode():
        clip.model.text_projection.data[:, 0] *= 50  # features of random weights would all have the same length
        raw = clip.model.encode_text(clip.tokenizer([t.format("sky") for t in Prompts("zegclip15").templates])).double()
    by_direction = torch.nn.functional.normalize(raw, dim=-1).mean(0)
    by_length = raw.mean(0)
    by_direction, by_length = (mean / mean.norm() for mean in (by_direction, by_length))
    assert (by_direction - by_length).norm() > 1e-3
    found = clip.encode_text(["sky"], Prompts("zegclip15").templates)[0]
    np.testing.assert_allclose(found, by_direction.numpy(), atol=1e-5)


def test_default_prompts_follow_zegclip():
    assert Prompts.default_for("voc").templates == ("a photo of a {}",)
    for dataset in ("coco", "context", "folder"):
        assert Prompts.default_for(dataset) == Prompts("zegclip15")


@pytest.mark.parametrize(("name", "number"), [("single", 1), ("zegclip15", 15), ("maskclip85", 85)])
def test_prompt_sets_have_the_published_number_of_templates(name, number):
    templates = Prompts(name).templates
    assert len(templates) == len(set(templates)) == number
    assert all(template.count("{}") == 1 for template in templates)
    assert Prompts(f"{name}-clean").templates == templates


def test_clean_prompts_use_cleaned_class_names():
    classes = ("person", "wall-brick", "building-other")
    assert Prompts("zegclip15").class_names("coco", classes) == classes
    assert Prompts("zegclip15-clean").class_names("coco", classes) == ("person", "brick wall", "building")
    assert Prompts("single-clean").class_names("folder", classes) == classes
    with pytest.raises(UsageError, match="choose single, zegclip15, maskclip85"):
        Prompts("zegclip16")


# -- fingerprint --------------------------------------------------------------------------------------------------


def test_fingerprint_lists_what_changes_the_numbers(clip):
    assert clip.fingerprint() == {
        "model": "tiny-vit",
        "weights_sha256": clip.weights_hash,
        "quick_gelu": False,
        "image_size": 128,
        "mean": MEAN_AND_STD[0].tolist(),
        "std": MEAN_AND_STD[1].tolist(),
        "precision": "fp32",
        "dense_recipe": "output",
    }


def test_quick_gelu_of_a_config_is_used(tmp_path, clip):
    config = {**json.loads(Path(CONFIG).read_text()), "quick_gelu": True}
    (tmp_path / "quick.json").write_text(json.dumps(config))
    quick = tiny_clip(config=tmp_path / "quick.json")
    assert quick.fingerprint()["quick_gelu"] is True
    assert quick.weights_hash == clip.weights_hash
    assert (quick.encode(IMAGES).cls != clip.encode(IMAGES).cls).any()


def test_mean_and_std_of_a_config_file_are_used(tmp_path, clip):
    config = {
        "model_cfg": json.loads(Path(CONFIG).read_text()),
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }
    (tmp_path / "own.json").write_text(json.dumps(config))
    own = tiny_clip(config=tmp_path / "own.json")
    assert (own.fingerprint()["mean"], own.fingerprint()["std"]) == ([0.5] * 3, [0.25] * 3)
    assert (own.encode(IMAGES).cls != clip.encode(IMAGES).cls).any()


def test_config_file_may_have_the_name_of_another_model(tmp_path, clip):
    shutil.copy(CONFIG, tmp_path / "ViT-B-16.json")  # the name of a model that open_clip knows
    copy = tiny_clip(config=tmp_path / "ViT-B-16.json")
    assert (copy.channels, copy.image_size, copy.grid) == (64, 128, (8, 8))
    assert copy.weights_hash == clip.weights_hash


# -- compiled ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a compiler")
def test_compiled_clip_is_equal_up_to_rounding(clip):
    compiled = FrozenCLIP(CLIPSource(str(CONFIG), "random"), "fp32", torch.device("cpu"), compiled=True)
    found, expected = compiled.encode(IMAGES), clip.encode(IMAGES)
    np.testing.assert_allclose(found.cls.astype(float), expected.cls.astype(float), atol=4e-3)
    np.testing.assert_allclose(found.dense.astype(float), expected.dense.astype(float), atol=8e-3)
    assert compiled.fingerprint() == clip.fingerprint()


def test_failed_compilation_names_the_option(monkeypatch):
    def broken(_):
        def call(*_):
            raise BackendCompilerFailed(compiler, RuntimeError("no compiler\nand more"), None)

        return call

    def compiler():
        pass

    monkeypatch.setattr(torch, "compile", broken)
    clip = FrozenCLIP(CLIPSource(str(CONFIG), "random"), "fp32", torch.device("cpu"), compiled=True)
    refused(lambda: clip.encode(IMAGES), "--compile", "leave it out")


# -- threads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_do_not_depend_on_the_number_of_threads(clip, precision):
    other = FrozenCLIP(clip.source, precision, torch.device("cpu"))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(other.encode(IMAGES))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result.cls, results[0].cls)
        np.testing.assert_array_equal(result.dense, results[0].dense)


def test_compute_slot_restores_the_number_of_threads(clip, monkeypatch):
    before, other = torch.get_num_threads(), FrozenCLIP(clip.source, "fp32", torch.device("cpu"))
    assert other.max_concurrent_batches == concurrent_batches(before)
    with other.compute_slot():
        assert torch.get_num_threads() == max(1, before // other.max_concurrent_batches)
    assert torch.get_num_threads() == before
    monkeypatch.setattr(other, "max_concurrent_batches", 1)
    with other.compute_slot():
        assert torch.get_num_threads() == before


def test_concurrent_batches_leave_few_threads_idle():
    assert [concurrent_batches(threads) for threads in (1, 2, 3, 4, 5, 6, 7, 8, 16, 24)] == [
        1,
        2,
        3,
        4,
        4,
        3,
        3,
        4,
        4,
        4,
    ]
    for threads in range(1, 65):
        assert 1 <= concurrent_batches(threads) <= MAX_CONCURRENT_BATCHES
        assert threads - threads // concurrent_batches(threads) * concurrent_batches(threads) <= 1
