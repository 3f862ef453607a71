from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, ResNetConfig, ResNetForImageClassification

from latentloom.drifting.encoders import FeatureEncoder, mae_encoder, resnet_encoder
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.errors import CheckpointError, FileError, ShapeError


@pytest.fixture(scope="module")
def classifier() -> ResNetForImageClassification:
    torch.manual_seed(3)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return ResNetForImageClassification(config).eval()


@pytest.fixture
def folder(classifier: ResNetForImageClassification, tmp_path: Path) -> Path:
    classifier.save_pretrained(tmp_path / "resnet")
    return tmp_path / "resnet"


def encoders(tmp_path: Path) -> list[FeatureEncoder]:
    save_mae(tmp_path / "mae.safetensors", LatentMae(MaeShape(channels=1, width=8)))
    return [resnet_encoder(None, 1, 0), mae_encoder(tmp_path / "mae.safetensors")]


def test_gradients_reach_samples_and_never_weights(tmp_path):
    for encoder in encoders(tmp_path):
        samples = torch.randn(2, 1, 8, 8, requires_grad=True)
        torch.cat([values.flatten() for values in encoder(samples)]).square().mean().backward()
        assert samples.grad is not None
        assert samples.grad.abs().max() > 0
        assert all(not weight.requires_grad and weight.grad is None for weight in encoder.parameters())


def test_an_encoder_stays_in_eval_mode(tmp_path):
    for encoder in encoders(tmp_path):
        samples = torch.randn(4, 1, 8, 8)
        before = encoder(samples)
        torch.nn.ModuleList([encoder]).train()
        after = encoder(samples)
        assert not any(module.training for module in encoder.modules())
        # batch norm in training mode would depend on the other samples, and change its statistics
        assert torch.allclose(encoder(samples[:1])[-1], before[-1][:1], atol=1e-5)
        assert all(torch.equal(first, second) for first, second in zip(before, after, strict=True))


def test_random_weights_come_from_the_seed_and_leave_other_randomness_alone():
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    first, second, third = resnet_encoder(None, 3, 0), resnet_encoder(None, 3, 0), resnet_encoder(None, 3, 1)
    assert torch.equal(torch.rand(1), expected)
    samples = torch.randn(2, 3, 16, 16)
    assert torch.equal(first(samples)[-1], second(samples)[-1])
    assert not torch.allclose(first(samples)[-1], third(samples)[-1])


def test_maps_go_from_fine_to_coarse_and_small_images_are_enlarged():
    encoder = resnet_encoder(None, 1, 0)
    assert [tuple(values.shape[1:]) for values in encoder(torch.randn(2, 1, 8, 8))] == [
        *((32, 8, 8), (64, 4, 4), (128, 2, 2), (256, 1, 1)),
    ]
    assert [values.shape[2:] for values in encoder(torch.randn(1, 1, 40, 64))] == [(10, 16), (5, 8), (3, 4), (2, 2)]


def test_a_resnet_from_a_folder_sees_imagenet_pixels_and_grey_as_rgb(classifier, folder):
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    maps = resnet_encoder(folder, 1, 0)(grey)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((grey.expand(-1, 3, -1, -1) + 1) / 2 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    expected = classifier.resnet(pixels, output_hidden_states=True).hidden_states
    assert len(maps) == 2
    for values, hidden in zip(maps, expected[1:], strict=True):
        assert torch.allclose(values, hidden, atol=1e-5)


def test_folders_without_a_whole_resnet_are_refused_in_one_line(folder, tmp_path):
    with pytest.raises(FileError, match="no folder with a config"):
        resnet_encoder(tmp_path / "nothing", 3, 0)
    with pytest.raises(CheckpointError, match="RGB"):
        resnet_encoder(folder, 16, 0)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["resnet.embedder.embedder.convolution.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 of its tensors are missing"):
        resnet_encoder(folder, 3, 0)
    weights.write_bytes(b"not a file of weights")
    with pytest.raises(CheckpointError) as damaged:
        resnet_encoder(folder, 3, 0)
    weights.unlink()
    with pytest.raises(CheckpointError) as empty:
        resnet_encoder(folder, 3, 0)
    BertConfig().save_pretrained(folder)
    with pytest.raises(CheckpointError) as other:
        resnet_encoder(folder, 3, 0)
    assert all("\n" not in str(mistake.value) for mistake in (damaged, empty, other))


def test_samples_of_other_channels_are_refused():
    with pytest.raises(ShapeError, match="16 channels for a feature encoder of 1"):
        resnet_encoder(None, 1, 0)(torch.randn(1, 16, 8, 8))


def test_the_encoder_of_an_autoencoder_gives_its_maps(tmp_path):
    mae = LatentMae(MaeShape(channels=16, width=8, stages=2)).eval()
    save_mae(tmp_path / "mae.safetensors", mae)
    samples = torch.randn(2, 16, 7, 9)
    maps = mae_encoder(tmp_path / "mae.safetensors")(samples)
    assert all(torch.equal(first, second) for first, second in zip(maps, mae.encode(samples), strict=True))
