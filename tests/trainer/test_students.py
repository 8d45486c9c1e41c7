"""The paper's students: MSCAN, SegNeXt's decoder, and Swin at any input size."""

import copy

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from refusals import refused
from safetensors.torch import save_file
from torch import nn

from data_cache.errors import UsageError, UserError
from trainer.config import TrainConfig
from trainer.memory import ADAM_BYTES, estimated_memory
from trainer.students.mscan import ENCODERS, MSCAN, MultiScaleAttention
from trainer.students.network import StudentNetwork, parameter_groups
from trainer.students.segformer import EarlyFusionDecoder, accelerate
from trainer.students.segnext import LowRank

SWIN = "tu-swin_tiny_patch4_window7_224"


@pytest.mark.parametrize("encoder", ["mit_b0", "resnet18"])
def test_segformer_equals_that_of_smp_in_values_gradients_and_parameters(encoder):
    expected = smp.create_model("segformer", encoder, encoder_weights=None, classes=4).double().eval()
    network = accelerate(copy.deepcopy(expected))
    assert isinstance(network.decoder, EarlyFusionDecoder)
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in expected.named_parameters()]
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    outputs = [one(images) for one in (network, expected)]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for own, other in zip(network.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize(("size", "millions"), [("t", 4.2), ("s", 13.9), ("b", 26.8), ("l", 45.2)])
def test_mscan_classifiers_have_the_published_number_of_parameters(size, millions):
    encoder = MSCAN(**ENCODERS[f"mscan_{size}"]["params"])
    # published counts include the classifier for ImageNet
    classifier = nn.Linear(encoder.out_channels[-1], 1000)
    parameters = sum(p.numel() for module in (encoder, classifier) for p in module.parameters())
    assert parameters == pytest.approx(millions * 1e6, rel=0.02)


@pytest.mark.parametrize("size", [(64, 64), (77, 101), (33, 32), (127, 65)])
def test_mscan_features_have_strides_4_8_16_and_32_at_any_size(size):
    encoder = MSCAN(**ENCODERS["mscan_t"]["params"]).eval()
    features = encoder(torch.zeros(2, 3, *size))
    assert features[0].shape == (2, 3, *size)
    assert features[1].shape[1] == 0
    for feature, width, stride in zip(features[2:], (32, 64, 160, 256), (4, 8, 16, 32), strict=True):
        assert feature.shape == (2, width, -(-size[0] // stride), -(-size[1] // stride))


def test_multi_scale_attention_matches_a_numpy_version():
    torch.manual_seed(0)
    module, x = MultiScaleAttention(4).double(), torch.randn(1, 4, 30, 30, dtype=torch.float64)
    state = {name: value.numpy() for name, value in module.state_dict().items()}

    def depthwise(image, name):
        kernel, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        height, width = kernel.shape[2:]
        padded = np.pad(image, ((0, 0), (height // 2,) * 2, (width // 2,) * 2))
        result = np.zeros_like(image)
        for i in range(height):
            for j in range(width):
                result += kernel[:, 0, i, j][:, None, None] * padded[:, i : i + 30, j : j + 30]
        return result + bias[:, None, None]

    image = x[0].numpy()
    local = depthwise(image, "conv0")
    total = local + sum(depthwise(depthwise(local, f"conv{n}_1"), f"conv{n}_2") for n in range(3))
    projected = np.einsum("oi,iyx->oyx", state["conv3.weight"][:, :, 0, 0], total) + state["conv3.bias"][:, None, None]
    np.testing.assert_allclose(module(x)[0].detach().numpy(), projected * image, rtol=1e-6, atol=1e-9)
    assert [state[f"conv{n}_1.weight"].shape[2:] for n in range(3)] == [(1, 7), (1, 11), (1, 21)]


def test_low_rank_approximation_is_reproducible_and_matches_a_numpy_version():
    torch.manual_seed(0)
    module, x = LowRank(12, rank=3).eval(), torch.rand(2, 12, 5, 4)
    output = module(x)
    assert torch.equal(output, module(x))
    for image, approximation in zip(x.double().numpy(), output.detach().numpy(), strict=True):
        target, bases = image.reshape(12, -1), module.bases.double().numpy()
        coefficients = np.exp(target.T @ bases)
        coefficients /= coefficients.sum(axis=1, keepdims=True)
        for step in range(8):
            coefficients = coefficients * (target.T @ bases) / (coefficients @ bases.T @ bases + 1e-6)
            if step < 7:
                bases = bases * (target @ coefficients) / (bases @ coefficients.T @ coefficients + 1e-6)
        np.testing.assert_allclose(approximation.reshape(12, -1), bases @ coefficients.T, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "encoder", "stride"),
    [("segnext", "mscan_t", 8), ("segnext", "resnet18", 8), ("segformer", "mscan_t", 4), ("upernet", SWIN, 4)],
)
def test_students_accept_any_size_and_every_parameter_gets_a_gradient(arch, encoder, stride):
    torch.manual_seed(0)
    student = StudentNetwork(arch, encoder, "none", 24)
    assert (student.stride, student.multiple) == (stride, 32)
    for height, width in ((64, 96), (96, 64)):
        features = student(torch.rand(2, 3, height, width) * 255)
        assert features.shape == (2, 24, height // stride, width // stride)
    features.square().sum().backward()
    unused = [name for name, p in student.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # batch norm cancels the bias of the layer before it
    assert not [name for name in unused if not name.endswith("bias")]


def test_swin_shifts_its_windows_at_every_stage_for_any_input_size():
    student = StudentNetwork("upernet", SWIN, "none", 8)
    shifts = [m.shift_size for m in student.modules() if hasattr(m, "shift_size")]
    assert [tuple(shift) for shift in shifts[-2:]] == [(0, 0), (3, 3)]


def test_swin_position_bias_tables_have_no_weight_decay():
    student = StudentNetwork("upernet", SWIN, "none", 8)
    no_decay = {
        id(p)
        for group in parameter_groups(student, 1.0, 1.0, 0.1)
        if not group["weight_decay"]
        for p in group["params"]
    }
    tables = [p for name, p in student.named_parameters() if "relative_position_bias_table" in name]
    assert tables
    assert all(id(table) in no_decay for table in tables)


@pytest.mark.parametrize("form", ["published", "openmmlab", "plain"])
def test_mscan_weights_load_from_published_openmmlab_and_plain_files(tmp_path, form):
    torch.manual_seed(1)
    state = MSCAN(**ENCODERS["mscan_t"]["params"]).state_dict()
    if form == "openmmlab":
        file = tmp_path / "mscan_t.pth"
        torch.save({name.replace("mlp.dwconv.dwconv", "mlp.dwconv"): value for name, value in state.items()}, file)
    elif form == "published":
        file = tmp_path / "mscan_t.pth"
        prefixed = {f"backbone.{name}": value for name, value in state.items()}
        torch.save({"state_dict": prefixed | {"head.weight": torch.zeros(1000, 256)}, "epoch": 300}, file)
    else:
        file = tmp_path / "mscan_t.safetensors"
        save_file(state, file)
    loaded = StudentNetwork("segnext", "mscan_t", str(file), 8).network.encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_swin_weights_load_from_a_timm_file(tmp_path):
    state = timm.create_model(SWIN.removeprefix("tu-"), pretrained=False).state_dict()
    torch.save({"model": state}, tmp_path / "swin.pth")
    loaded = StudentNetwork("upernet", SWIN, str(tmp_path / "swin.pth"), 8).network.encoder.model.state_dict()
    assert torch.equal(loaded["layers_2.blocks.3.mlp.fc1.weight"], state["layers.2.blocks.3.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("encoder", "weights", "words"),
    [
        (SWIN, "imagnet", "--encoder tu-swin"),
        ("resnet18", "/nope/x.pth", "no such file"),
        (SWIN, "x.pth", "no such file"),
    ],
)
def test_invalid_encoder_weights_are_refused(encoder, weights, words):
    with pytest.raises(UserError, match=words):
        StudentNetwork("upernet", encoder, weights, 8)


@pytest.mark.parametrize(
    ("encoder", "width"), [("mscan_t", 256), ("mscan_s", 256), ("mscan_b", 512), ("mscan_l", 1024)]
)
def test_the_segnext_decoder_has_the_published_width(encoder, width):
    with torch.device("cpu"):
        assert StudentNetwork("segnext", encoder, "none", 8).network.decoder.ham.bases.shape == (width, 16)


def test_mscan_without_downloadable_weights_is_refused():
    refused(lambda: StudentNetwork("segnext", "mscan_t", "imagenet", 8), "mscan_t", "imagenet", kind=UsageError)


def test_estimated_memory_counts_parameters_and_grows_linearly_with_the_batch():
    def estimate(batch, stride=4, scope="batch"):
        config = TrainConfig(batch_size=batch, loss_stride=stride, pseudo_scope=scope)
        return estimated_memory(config, StudentNetwork("segformer", "mit_b0", "none", 32), 64, 10, mixed=False)

    parameters = sum(p.numel() for p in StudentNetwork("segformer", "mit_b0", "none", 32).parameters())
    one, two, four = (estimate(n, scope="image") for n in (1, 2, 4))
    assert one > parameters * ADAM_BYTES
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    assert estimate(1, stride=1) > one
    assert estimate(4, scope="batch") > four  # where each image has the rows of all


def test_estimated_activations_match_a_real_forward_pass():
    torch.manual_seed(0)
    student = StudentNetwork("segformer", "mit_b0", "none", 32).train()
    weights = {p.untyped_storage().data_ptr() for p in (*student.parameters(), *student.buffers())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = student.network(torch.rand(2, 3, 64, 64))
        measured = sum(saved.values())
    parameters = sum(p.numel() for p in student.parameters())
    config = TrainConfig(batch_size=2, loss_stride=64)
    estimated = estimated_memory(config, student, 64, 1, mixed=False) - parameters * ADAM_BYTES - 8 * features.numel()
    assert estimated == pytest.approx(measured, rel=0.1)
