"""Latents of images: made by the VAE, kept for exactly those images and that VAE, and turned back into pixels."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentloom.drifting.config import DataConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.fake_images import draw_fake_images
from latentloom.drifting.images import MirroredImages, bytes_from_pixels
from latentloom.drifting.latent_data import ImageVae, cache_latents, latents_of, read_latents
from latentloom.errors import CheckpointError, ConfigError, CorruptFileError, FileError
from latentloom.storage import read_header
from latentloom.wan.checkpoints import load_vae
from latentloom.wan.shipped import micro_wan_weights
from latentloom.wan.vae import encode_video

CPU = torch.device("cpu")
FAKE = {"dataset": "fake", "fake_images": 24, "fake_classes": 4, "image_size": 32, "input_space": "latent"}


def load(**settings):
    return load_data(DataConfig(**settings), CPU)


def everything(images):
    return images.load(torch.arange(len(images)))


@pytest.fixture(scope="module")
def pixels():
    return draw_fake_images(24, 4, 32, 0)


@pytest.fixture
def latent_file(pixels, tmp_path):
    cache_latents(pixels, None, tmp_path / "latents.safetensors", CPU)
    return tmp_path / "latents.safetensors"


def test_latents_are_those_that_the_vae_gives_for_one_frame(pixels):
    data = load(**FAKE)
    vae = load_vae(micro_wan_weights(), torch.float32)
    frames = bytes_from_pixels(everything(pixels)).permute(0, 2, 3, 1)[:, None]
    expected = encode_video(vae, frames, CPU).values[:, :, 0]
    assert data.train.shape == data.held_out.shape == (16, 4, 4)
    found = torch.cat([everything(data.train), everything(data.held_out)])
    nearest = torch.cdist(found.flatten(1), expected.flatten(1))
    assert nearest.min(dim=1).values.max() < 1e-3
    assert sorted(nearest.argmin(dim=1).tolist()) == list(range(24))
    labels = torch.cat([data.train.labels, data.held_out.labels])
    assert torch.equal(labels, pixels.labels[nearest.argmin(dim=1)])


def test_latents_come_back_as_the_pixels_they_were_made_of():
    data = load(**(FAKE | {"image_size": 64}))
    shown = data.to_pixels(everything(data.held_out))
    drawn = everything(load(**(FAKE | {"image_size": 64, "input_space": "pixel"})).held_out)
    assert shown.shape == drawn.shape
    assert shown.abs().max() <= 1
    error = (shown - drawn).square().mean(dim=(1, 2, 3))
    others = (shown - drawn.roll(1, dims=0)).square().mean(dim=(1, 2, 3))
    assert bool((error < others).all())
    assert data.to_pixels(everything(data.held_out)[:0]).shape == (0, 3, 64, 64)


def test_one_channel_becomes_grey():
    data = load(dataset="digits", image_size=16, input_space="latent")
    assert data.train.shape == (16, 2, 2)
    assert data.to_pixels(data.train.load(torch.tensor([0]))).shape == (1, 3, 16, 16)


def test_a_cache_gives_the_same_and_is_not_made_again(tmp_path):
    cache = tmp_path / "made" / "cache.safetensors"
    in_memory, first = load(**FAKE), load(**FAKE, latent_cache=cache)
    written = cache.stat().st_mtime_ns
    second = load(**FAKE, latent_cache=cache)
    assert cache.stat().st_mtime_ns == written
    for data in (first, second):
        assert torch.equal(everything(data.train), everything(in_memory.train))
        assert torch.equal(everything(data.held_out), everything(in_memory.held_out))
        assert data.train.class_names == in_memory.train.class_names


def test_images_that_are_cached_are_not_opened(pixels, latent_file):
    def open_images():
        raise AssertionError("opened")

    latents = latents_of(pixels.fingerprint, open_images, ImageVae(None, CPU), latent_file)
    assert torch.equal(latents.labels, pixels.labels)


@pytest.mark.parametrize("change", [{"fake_images": 25}, {"split_seed": 1}, {"image_size": 40}, {"flip": True}])
def test_a_cache_of_other_images_is_refused(tmp_path, change):
    load(**FAKE, latent_cache=tmp_path / "cache.safetensors")
    with pytest.raises(FileError, match=r"holds latents of other images, .*; give another latent_cache, or delete it$"):
        load(**(FAKE | change), latent_cache=tmp_path / "cache.safetensors")


def test_a_cache_of_another_vae_is_refused(tmp_path, tiny_checkpoint):
    load(**FAKE, latent_cache=tmp_path / "cache.safetensors")
    with pytest.raises(FileError, match="made by another VAE; give another latent_cache"):
        load(**FAKE, latent_cache=tmp_path / "cache.safetensors", vae_root=tiny_checkpoint)


def test_a_cache_of_a_folder_is_refused_once_a_file_has_changed(tmp_path, pixels):
    from PIL import Image

    frames = bytes_from_pixels(everything(pixels)).permute(0, 2, 3, 1).numpy()
    for frame, label in zip(frames, pixels.labels.tolist(), strict=True):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(folder / f"{len(list(folder.iterdir()))}.png")
    settings = {
        "dataset": "imagefolder",
        "data_root": tmp_path / "images",
        "image_size": 32,
        "input_space": "latent",
        "latent_cache": tmp_path / "cache.safetensors",
    }
    assert len(load(**settings).train) == len(load(**FAKE).train)
    os.utime(tmp_path / "images" / "0" / "0.png", ns=(1, 1))
    with pytest.raises(FileError, match="or of these before they changed"):
        load(**settings)


def test_mirrored_latents_are_those_of_mirrored_images():
    plain, flipped = load(**FAKE), load(**FAKE, flip=True)
    half = len(plain.train)
    assert len(flipped.train) == 2 * half
    assert torch.equal(everything(flipped.held_out), everything(plain.held_out))
    torch.testing.assert_close(everything(flipped.train)[:half], everything(plain.train), atol=1e-4, rtol=1e-4)
    shown = flipped.to_pixels(everything(flipped.train))
    is_mirror = (shown[half:].flip(-1) - shown[:half]).square().mean()
    assert is_mirror < 0.5 * (shown[half:] - shown[:half]).square().mean()


def test_a_file_of_latents_is_a_dataset(latent_file, pixels):
    data = load(dataset="latents", data_root=latent_file, input_space="latent")
    encoded = load(**FAKE)
    assert data.train.class_names == pixels.class_names
    assert torch.equal(everything(data.train), everything(encoded.train))
    assert torch.equal(data.held_out.labels, encoded.held_out.labels)
    assert data.to_pixels(everything(data.held_out)).shape[1:] == (3, 32, 32)


def test_a_file_with_mirrored_latents_trains_on_them_only_with_flip(tmp_path, pixels):
    cache_latents(MirroredImages(pixels), None, tmp_path / "both.safetensors", CPU)
    settings = {"dataset": "latents", "data_root": tmp_path / "both.safetensors", "input_space": "latent"}
    plain, flipped = load(**settings), load(**settings, flip=True)
    assert len(plain.train) + len(plain.held_out) == 24
    assert torch.equal(flipped.train.labels, torch.cat([plain.train.labels] * 2))
    assert torch.equal(everything(flipped.held_out), everything(plain.held_out))


def test_latents_without_mirrored_ones_cannot_be_flipped(latent_file):
    with pytest.raises(ConfigError, match=r"latents cannot be mirrored; leave out flip, or make the file with it$"):
        load(dataset="latents", data_root=latent_file, input_space="latent", flip=True)


def test_a_foreign_file_needs_neither_names_nor_fingerprints(tmp_path):
    latents = torch.randn(12, 16, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    labels = torch.arange(12) % 3
    save_file({"latents": latents, "labels": labels}, tmp_path / "mine.safetensors")
    data = load(dataset="latents", data_root=tmp_path / "mine.safetensors", input_space="latent")
    assert data.train.class_names == ("0", "1", "2")
    assert everything(data.train).dtype == torch.float32
    save_file({"latents": latents + 1, "labels": labels}, tmp_path / "other.safetensors")
    other, again = (read_latents(tmp_path / name) for name in ("other.safetensors", "mine.safetensors"))
    assert again.fingerprint == data.train.fingerprint != other.fingerprint


def test_latents_of_another_vae_are_refused(latent_file, tmp_path):
    metadata = read_header(latent_file)["__metadata__"] | {"vae": "0123456789abcdef"}
    save_file(load_file(latent_file), latent_file, metadata)
    with pytest.raises(CheckpointError, match=r"was made by another VAE than the one in .*; give vae_root$"):
        load(dataset="latents", data_root=latent_file, input_space="latent")
    save_file({"latents": torch.zeros(8, 4, 2, 2), "labels": torch.arange(8) % 2}, tmp_path / "sd.safetensors")
    with pytest.raises(CheckpointError, match=r"holds latents of 4 channels, and the VAE in .* has 16"):
        load(dataset="latents", data_root=tmp_path / "sd.safetensors", input_space="latent")


LATENTS, LABELS = torch.zeros(4, 16, 2, 2), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"labels": LABELS}, None, r"does not hold latents \[N, C, H, W\] with Int64 labels \[N\]"),
        ({"latents": LATENTS[0], "labels": LABELS}, None, "does not hold latents"),
        ({"latents": LATENTS.int(), "labels": LABELS}, None, "does not hold latents"),
        ({"latents": LATENTS, "labels": LABELS[:3]}, None, "does not hold latents"),
        ({"latents": LATENTS, "labels": LABELS.float()}, None, "does not hold latents"),
        ({"latents": LATENTS[:0], "labels": LABELS[:0]}, None, "has 0 labels"),
        ({"latents": LATENTS, "labels": LABELS - 1}, None, "has 4 labels, not all of them from 0 to 0"),
        ({"latents": LATENTS, "labels": LABELS}, {"class_names": json.dumps(["a"])}, "not all of them from 0 to 0"),
        ({"latents": LATENTS, "labels": LABELS}, {"class_names": "a, b"}, "are no JSON list of texts"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, tensors, metadata, message):
    save_file(tensors, tmp_path / "file.safetensors", metadata)
    with pytest.raises(FileError, match=message):
        read_latents(tmp_path / "file.safetensors")


def test_a_damaged_file_is_refused(latent_file):
    latent_file.write_bytes(latent_file.read_bytes()[:-100])
    with pytest.raises(CorruptFileError):
        read_latents(latent_file)


def test_a_file_says_what_it_was_made_of(latent_file, pixels):
    metadata = read_header(latent_file)["__metadata__"]
    assert json.loads(metadata["class_names"]) == list(pixels.class_names)
    assert metadata["images"] == pixels.fingerprint
    assert metadata["vae"] == ImageVae(None, CPU).fingerprint
    assert load_file(latent_file)["labels"].dtype == torch.int64


def test_an_image_size_that_the_vae_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"^image_size = 20 is not a multiple of 8, .*; give 16$"):
        load(**(FAKE | {"image_size": 20}))


@pytest.mark.parametrize("idle", [{"image_size": 32}, {"latent_cache": "cache.safetensors"}])
def test_settings_that_a_file_of_latents_has_no_use_for_are_refused(latent_file, idle):
    with pytest.raises(ConfigError, match="has no effect with dataset = 'latents'; leave it out"):
        load(dataset="latents", data_root=latent_file, input_space="latent", **idle)


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_encoded(pixels, tmp_path):
    with pytest.raises(FileError, match="exists and is not a file"):
        cache_latents(pixels, None, tmp_path, CPU)
