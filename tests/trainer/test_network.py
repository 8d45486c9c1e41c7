"""The student: strides, channels, normalization, parameter groups, weights, and one-line errors."""

import pytest
import torch
from hub import CLOSED, SILENT, hub
from refusals import refused
from torch import nn

from data_cache.errors import UsageError, UserError
from trainer.students.network import StudentNetwork, parameter_groups

CHANNELS = 24


def refusal(kind: type[UserError], *arguments, match: str) -> None:
    with pytest.raises(kind, match=match) as error:
        StudentNetwork(*arguments, CHANNELS)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arch", "encoder", "stride"),
    [
        ("unet", "resnet18", 4),
        ("linknet", "resnet18", 4),
        ("fpn", "resnet18", 4),
        ("segformer", "mit_b0", 4),
        ("deeplabv3plus", "resnet18", 4),
        ("pspnet", "resnet18", 8),
        ("deeplabv3", "resnet18", 8),
        ("unet", "tu-resnet18", 4),
    ],
)
def test_features_have_the_joint_width_and_a_stride_of_at_least_4(arch, encoder, stride):
    student = StudentNetwork(arch, encoder, "none", CHANNELS).eval()
    shapes = []
    for module in student.modules():
        module.register_forward_hook(lambda _, __, output: shapes.append(getattr(output, "shape", ())))
    with torch.no_grad():
        features = student(torch.zeros(1, 3, 64, 128, dtype=torch.uint8))
    assert student.stride == stride
    assert features.shape == (1, CHANNELS, 64 // stride, 128 // stride)
    # no tensor of the joint width is larger: with 512 channels it would not fit into memory
    assert max(s[2] for s in shapes if len(s) == 4 and s[1] == CHANNELS) == 64 // stride


def test_probing_keeps_train_mode_and_batch_norm_statistics():
    student = StudentNetwork("fpn", "resnet18", "none", CHANNELS)
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    assert student.network.training
    assert all(m.training and m.num_batches_tracked == 0 for m in norms)


@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_images_are_normalized_with_the_encoder_statistics(encoder):
    student = StudentNetwork("fpn", encoder, "none", CHANNELS).eval()
    encoder_inputs = []
    student.network.encoder.register_forward_pre_hook(lambda _, inputs: encoder_inputs.append(inputs[0]))
    image = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        student(image)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = [(image[0, c].double() / 255 - mean[c]) / std[c] for c in range(3)]
    torch.testing.assert_close(encoder_inputs[0][0].double(), torch.stack(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("arch", "encoder"), [("unet", "resnet18"), ("segformer", "mit_b0")])
def test_every_parameter_is_in_exactly_one_group(arch, encoder):
    student = StudentNetwork(arch, encoder, "none", CHANNELS)
    grouped = [
        id(p)
        for group in parameter_groups(student, 1e-3, 10, 0.01, slow=student.network.encoder)
        for p in group["params"]
    ]
    assert sorted(grouped) == sorted(id(p) for p in student.parameters())


@pytest.mark.parametrize(("arch", "encoder"), [("unet", "resnet18"), ("segformer", "mit_b0")])
def test_norms_have_no_weight_decay_and_the_head_a_higher_learning_rate(arch, encoder):
    student = StudentNetwork(arch, encoder, "none", CHANNELS)
    groups = parameter_groups(student, 1e-3, 10, 0.01, slow=student.network.encoder)
    settings = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    num_norms = 0
    for name, module in student.named_modules():
        is_norm = "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False):
            lr, decay = settings[id(parameter)]
            assert lr == pytest.approx(1e-3 if name.startswith("network.encoder") else 1e-2)
            assert decay == (0 if is_norm else 0.01)
            num_norms += is_norm
    assert num_norms > 10


def test_an_unknown_architecture_is_refused_with_the_choices():
    refusal(UsageError, "unett", "resnet18", "none", match=r"--arch unett.*unet")


def test_an_unknown_encoder_is_refused():
    refusal(UsageError, "unet", "resnet1800", "none", match="--encoder resnet1800")


def test_an_unknown_timm_encoder_is_refused():
    with pytest.raises(UserError, match="tu-nosuchnet") as error:
        StudentNetwork("unet", "tu-nosuchnet", "none", CHANNELS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answer", [CLOSED, SILENT, 503, 404])
@pytest.mark.parametrize(
    ("encoder", "repository"),
    [("resnet18", "smp-hub/resnet18.imagenet"), ("tu-resnet18", "timm/resnet18."), ("tu-gernet_s", "timm/gernet_s.")],
)
def test_failed_download_is_refused_at_once_with_the_file_to_get(
    answer, encoder, repository, tmp_path, monkeypatch, caplog
):
    with hub(answer, tmp_path, monkeypatch):
        refused(
            lambda: StudentNetwork("fpn", encoder, "imagenet", 8),
            *("--encoder-weights imagenet", f"https://huggingface.co/{repository}", "pass its path"),
        )
    assert not caplog.records
