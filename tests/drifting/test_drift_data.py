"""Datasets by the settings: what is in them, how they are divided, and what is refused."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from latentloom.drifting.config import DataConfig
from latentloom.drifting.data import load_data, split_by_class
from latentloom.drifting.images import bytes_from_pixels, pixels_from_bytes
from latentloom.errors import ConfigError, CorruptFileError, FileError

CPU = torch.device("cpu")
class_sizes = st.lists(st.integers(4, 40), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def load(**settings):
    return load_data(DataConfig(**settings), CPU)


def everything(images):
    return images.load(torch.arange(len(images)))


def rows_as_bytes(values):
    return {row.numpy().tobytes() for row in values}


@pytest.fixture
def folder(tmp_path):
    """Two classes: 6 wide red images and 5 tall blue ones with a green end, in every format."""
    for name, colour, size, num in (("cat", "red", (60, 20), 6), ("dog", "blue", (20, 60), 5)):
        (tmp_path / name / "deeper").mkdir(parents=True)
        for number in range(num):
            image = Image.new("RGB", size, colour)
            image.paste("lime", (0, 40, 20, 60))  # beyond the middle that is cut out
            image.putpixel((size[0] // 2, size[1] // 2), (number, 0, 0))
            suffix = (".png", ".jpg", ".JPEG", ".bmp", ".webp")[number % 5]
            image.save(tmp_path / name / ("deeper" if number % 2 else "") / f"{number}{suffix}", quality=100)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_digits_are_those_of_scikit_learn():
    data = load()
    assert data.train.shape == (1, 8, 8)
    assert data.train.class_names == tuple("0123456789")
    assert (len(data.train), len(data.held_out)) == (1258, 539)
    pixels, labels = load_digits(return_X_y=True)
    expected = {(label, row.tobytes()) for row, label in zip((pixels / 8 - 1).astype(np.float32), labels, strict=True)}
    for part in (data.train, data.held_out):
        values = everything(part)
        assert values.dtype == torch.float32
        found = {(int(label), row.numpy().tobytes()) for row, label in zip(values.flatten(1), part.labels, strict=True)}
        assert found <= expected


def test_digits_of_another_size_look_the_same():
    small, large = everything(load().train), everything(load(image_size=32).train)
    assert large.shape[1:] == (1, 32, 32)
    assert large.abs().max() <= 1
    again = torch.nn.functional.interpolate(large, (8, 8), mode="area")
    assert torch.corrcoef(torch.stack([again.flatten(), small.flatten()]))[0, 1] > 0.98


@given(class_sizes, st.floats(0.05, 0.7), st.sampled_from([0.0, 0.3]), seeds)
def test_every_class_gives_the_same_share_and_nothing_is_on_both_sides(sizes, share, validation_share, seed):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    names = [str(number) for number in range(len(sizes))]
    held = [max(1, round(share * size)) for size in sizes]
    train, held_out = split_by_class(labels, names, share, seed)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert torch.equal(train, train.sort().values)
    for got, wanted in zip(torch.bincount(labels[held_out], minlength=len(sizes)).tolist(), held, strict=True):
        assert abs(got - wanted) <= 1  # float32 and float64 may round a half to either side
    if validation_share and all(size - num >= 3 for size, num in zip(sizes, held, strict=True)):
        fewer, validation = split_by_class(labels, names, share, seed, validation_share)
        assert sorted([*fewer.tolist(), *validation.tolist()]) == train.tolist()


def test_validation_images_come_out_of_the_training_part_and_held_out_ones_stay_untouched():
    plain, validated = load(), load(validation_share=0.25)
    train, held_out = rows_as_bytes(everything(plain.train)), rows_as_bytes(everything(plain.held_out))
    validation = rows_as_bytes(everything(validated.held_out))
    assert validation <= train
    assert not validation & (held_out - train)
    assert len(validated.train) + len(validated.held_out) == len(plain.train)
    assert "validation" in validated.description


def test_the_split_depends_on_its_seed_alone():
    first, again, other = load(), load(), load(split_seed=1)
    assert torch.equal(everything(first.held_out), everything(again.held_out))
    assert not torch.equal(everything(first.held_out), everything(other.held_out))


def test_a_class_too_small_to_be_divided_is_named():
    with pytest.raises(ConfigError, match=r"^class '003' has 1 images .* give it more images, or take it out$"):
        load(dataset="fake", fake_images=7, fake_classes=4, image_size=16)


def test_fake_images_are_told_apart_by_their_class():
    settings = {"dataset": "fake", "fake_images": 120, "fake_classes": 6, "image_size": 24}
    data, again = load(**settings), load(**settings)
    values = everything(data.train)
    assert torch.equal(values, everything(again.train))
    assert not torch.equal(values, everything(load(**settings, split_seed=1).train)[: len(values)])
    assert values.shape[1:] == (3, 24, 24)
    assert values.abs().max() <= 1
    assert len(rows_as_bytes(values)) == len(values)
    means = torch.stack([values[data.train.labels == number].mean(dim=(0, 2, 3)) for number in range(6)])
    held_out = everything(data.held_out).mean(dim=(2, 3))
    assert (torch.cdist(held_out, means).argmin(dim=1) == data.held_out.labels).float().mean() > 0.8


def test_more_fake_classes_than_images_are_refused():
    with pytest.raises(ConfigError, match="3 fake_images of 4 fake_classes"):
        load(dataset="fake", fake_images=3, fake_classes=4)


def test_flipping_adds_every_training_image_mirrored_and_no_held_out_one():
    plain, flipped = load(), load(flip=True)
    values, both = everything(plain.train), everything(flipped.train)
    assert torch.equal(both, torch.cat([values, values.flip(-1)]))
    assert torch.equal(flipped.train.labels, torch.cat([plain.train.labels] * 2))
    assert torch.equal(everything(flipped.held_out), everything(plain.held_out))
    mixed = torch.tensor([1258, 0, 1259])
    assert torch.equal(flipped.train.load(mixed), both[mixed])


def test_pixels_stay_pixels():
    samples = torch.tensor([[[[-3.0, -0.5, 0.25, 2.0]]]])
    assert load().to_pixels(samples).flatten().tolist() == [-1, -0.5, 0.25, 1]


def test_bytes_come_back_from_pixels():
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(bytes_from_pixels(pixels_from_bytes(values)), values)
    assert pixels_from_bytes(values)[[0, -1]].tolist() == [-1, 1]


def test_a_folder_gives_the_middle_of_its_images_by_class(folder):
    data = load(dataset="imagefolder", data_root=folder, image_size=10)
    assert data.train.class_names == ("cat", "dog")
    assert len(data.train) + len(data.held_out) == 11
    for part in (data.train, data.held_out):
        values = everything(part)
        assert values.shape[1:] == (3, 10, 10)
        for value, label in zip(values, part.labels.tolist(), strict=True):
            expected = torch.tensor([1.0, -1, -1] if label == 0 else [-1.0, -1, 1])
            assert (value[:, :3, :3].mean(dim=(1, 2)) - expected).abs().max() < 0.1
    order = torch.tensor([3, 0, 3])
    assert torch.equal(data.train.load(order), everything(data.train)[order])
    assert data.train.load(order[:0]).shape == (0, 3, 10, 10)


def test_images_are_turned_upright_and_brought_to_rgb(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            exif = Image.Exif()
            exif[0x0112] = 6  # shown turned by a quarter to the right
            image = Image.new("L", (32, 32), 0)
            image.paste(255, (0, 16, 32, 32))
            image.save(tmp_path / name / f"{number}.png", exif=exif)
    values = everything(load(dataset="imagefolder", data_root=tmp_path, image_size=8).train)
    assert values[:, :, :, :3].min() > 0.9
    assert values[:, :, :, 5:].max() < -0.9


def test_unreadable_images_are_counted_named_and_left_out(folder, caplog):
    (folder / "cat" / "text.png").write_text("no image")
    (folder / "cat" / "empty.jpg").touch()
    noise = Image.effect_noise((200, 200), 90)
    noise.save(folder / "dog" / "cut.jpg")
    whole = (folder / "dog" / "cut.jpg").read_bytes()
    (folder / "dog" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING):
        data = load(dataset="imagefolder", data_root=folder, image_size=10)
    assert len(data.train) + len(data.held_out) == 11
    assert everything(data.train).isfinite().all()
    (message,) = [record.getMessage() for record in caplog.records if "unreadable" in record.getMessage()]
    assert message.startswith("left out 3 of 14 unreadable images: ")
    assert all(name in message for name in ("text.png", "empty.jpg", "cut.jpg"))


def test_an_image_that_breaks_later_is_named(folder):
    data = load(dataset="imagefolder", data_root=folder, image_size=10)
    for file in folder.glob("*/**/*.*"):
        file.write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"cannot be decoded \(.*\); take it out of the folder$"):
        everything(data.train)


def test_a_subfolder_without_images_is_no_class(folder, caplog):
    (folder / "axolotl").mkdir()
    with caplog.at_level(logging.WARNING):
        data = load(dataset="imagefolder", data_root=folder, image_size=10)
    assert data.train.class_names == ("cat", "dog")
    assert "no classes, as they hold no images: axolotl" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, r"is no folder; give one with a subfolder of images for each class$"),
        (lambda root: root.mkdir(), r"has no subfolders; put the images of each class into one named after the class$"),
        (lambda root: (root / "cat").mkdir(parents=True), r"the 1 subfolders of .* hold no images \(.bmp, "),
    ],
)
def test_a_folder_without_classes_or_images_is_refused(tmp_path, make, message):
    make(tmp_path / "images")
    with pytest.raises(FileError, match=message):
        load(dataset="imagefolder", data_root=tmp_path / "images")


def test_a_folder_of_nothing_but_broken_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_text("no image")
    with pytest.raises(FileError, match=r"none of the 1 image files in .* can be decoded"):
        load(dataset="imagefolder", data_root=tmp_path)


def test_a_change_of_a_file_changes_the_fingerprint(folder):
    before, same = (load(dataset="imagefolder", data_root=folder, image_size=10).train.fingerprint for _ in range(2))
    other_size = load(dataset="imagefolder", data_root=folder, image_size=12).train.fingerprint
    Image.new("RGB", (61, 20)).save(folder / "cat" / "0.png")
    after = load(dataset="imagefolder", data_root=folder, image_size=10).train.fingerprint
    assert before == same
    assert len({before, other_size, after}) == 3


def test_pixels_are_opened_without_the_library_of_the_vae():
    program = (
        "import sys, torch; from latentloom.drifting.config import DataConfig; "
        "from latentloom.drifting.data import load_data; "
        "load_data(DataConfig(dataset='fake', image_size=8), torch.device('cpu')); print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
