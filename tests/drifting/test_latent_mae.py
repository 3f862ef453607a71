from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latentloom.drifting.mae import LatentMae, MaeShape, draw_hidden, load_mae, reconstruction_loss, save_mae
from latentloom.errors import CheckpointError, FileError, ShapeError
from latentloom.storage import save_module


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 3), st.integers(2, 20), st.integers(2, 20), st.floats(0.1, 0.9), st.integers(0, 99))
def test_exactly_the_share_of_whole_squares_is_hidden(patch, height, width, ratio, seed):
    rows, columns = -(-height // patch), -(-width // patch)
    if rows * columns < 2:
        return
    hidden = draw_hidden(4, (height, width), patch, ratio, generator(seed))
    squares = hidden[:, ::patch, ::patch]
    expected = min(max(round(ratio * rows * columns), 1), rows * columns - 1)
    assert (squares.sum(dim=(1, 2)) == expected).all()
    whole = squares.repeat_interleave(patch, 1)[:, :height].repeat_interleave(patch, 2)[:, :, :width]
    assert torch.equal(hidden, whole)


def test_masks_differ_between_images_and_repeat_with_the_seed():
    first, again, other = (draw_hidden(64, (8, 8), 2, 0.5, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.flatten(1).unique(dim=0)) > 60
    share = first.float().mean(dim=0)  # every place is hidden about as often
    assert share.min() > 0.25
    assert share.max() < 0.75


def test_an_image_of_one_square_is_refused():
    with pytest.raises(ShapeError, match="one square of mask_patch = 8"):
        draw_hidden(2, (8, 8), 8, 0.5, generator())


@pytest.mark.parametrize(
    ("channels", "size", "stages", "width"),
    [(1, (8, 8), 3, 8), (3, (13, 10), 4, 6), (16, (32, 32), 3, 9), (16, (4, 4), 3, 8), (1, (5, 3), 1, 4)],
)
def test_maps_halve_and_reconstructions_have_the_size_of_the_sample(channels, size, stages, width):
    mae = LatentMae(MaeShape(channels=channels, width=width, stages=stages, num_classes=7))
    samples = torch.randn(2, channels, *size)
    maps = mae.encode(samples)
    height, across = size
    for number, values in enumerate(maps):
        assert values.shape == (2, width * 2**number, height, across)
        height, across = -(-height // 2), -(-across // 2)
    assert len(maps) == stages
    output = mae(samples, draw_hidden(2, size, 2, 0.5, generator()))
    assert output.samples.shape == samples.shape
    assert output.logits is not None
    assert output.logits.shape == (2, 7)


def test_hidden_cells_are_not_seen():
    mae = LatentMae(MaeShape(channels=1, width=8)).eval()
    samples, hidden = torch.randn(2, 1, 8, 8), draw_hidden(2, (8, 8), 2, 0.5, generator())
    elsewhere = torch.where(hidden.unsqueeze(1), torch.randn(2, 1, 8, 8), samples)
    assert torch.equal(mae(samples, hidden).samples, mae(elsewhere, hidden).samples)
    assert not torch.equal(mae(samples, hidden).samples, mae(samples + 0.1, hidden).samples)


def test_the_loss_is_the_error_on_hidden_cells_alone():
    samples, hidden = torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    hidden[0, 0, :2] = True
    hidden[1, 3, 3] = True
    wrong = torch.full_like(samples, 5.0)
    wrong[0, :, 0, 0], wrong[0, :, 0, 1], wrong[1, :, 3, 3] = 1.0, 2.0, 3.0
    assert reconstruction_loss(wrong, samples, hidden).tolist() == [2.5, 9.0]


def test_a_file_gives_the_same_autoencoder_frozen(tmp_path):
    mae = LatentMae(MaeShape(channels=1, width=8, num_classes=10)).eval()
    save_mae(tmp_path / "mae.safetensors", mae, {"steps": 3})
    loaded = load_mae(tmp_path / "mae.safetensors")
    samples, hidden = torch.randn(2, 1, 8, 8), draw_hidden(2, (8, 8), 2, 0.5, generator())
    assert loaded.shape == mae.shape
    assert torch.equal(loaded(samples, hidden).samples, mae(samples, hidden).samples)
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert not loaded.training


def rewrite(path: Path, change: str) -> None:
    """Damage the file's tensors and leave what it says about itself."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    if change == "missing":
        del tensors["encoder.stem.bias"]
    elif change == "extra":
        tensors["encoder.more"] = torch.zeros(3)
    elif change == "shape":
        tensors["encoder.stem.bias"] = torch.zeros(3)
    else:
        tensors["encoder.stem.bias"] = torch.zeros(8, dtype=torch.int64)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "dtype"])
def test_a_file_with_other_tensors_is_refused_in_one_line(tmp_path, change):
    path = tmp_path / "mae.safetensors"
    save_mae(path, LatentMae(MaeShape(channels=1, width=8)))
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=r"1 differ, such as encoder\.(stem\.bias|more)") as mistake:
        load_mae(path)
    assert "\n" not in str(mistake.value)


def test_files_of_something_else_are_refused(tmp_path):
    save_module(tmp_path / "other.safetensors", {"weight": torch.zeros(2)}, "Other", {})
    with pytest.raises(FileError, match="holds Other"):
        load_mae(tmp_path / "other.safetensors")
    save_module(tmp_path / "strange.safetensors", {"weight": torch.zeros(2)}, "LatentMae", {"channels": 0})
    with pytest.raises(CheckpointError, match="no known autoencoder"):
        load_mae(tmp_path / "strange.safetensors")
    with pytest.raises(FileError, match="does not exist"):
        load_mae(tmp_path / "nothing.safetensors")


def test_a_few_steps_learn_to_fill_in_what_is_hidden():
    torch.manual_seed(0)
    mae = LatentMae(MaeShape(channels=1, width=8, stages=2, blocks=1))
    optimizer = torch.optim.AdamW(mae.parameters(), lr=5e-3)
    ramps = torch.linspace(-1, 1, 8).expand(8, 8)
    samples = torch.stack([ramps, ramps.T, -ramps, -ramps.T]).unsqueeze(1).repeat(4, 1, 1, 1)
    losses = []
    for step in range(60):
        hidden = draw_hidden(16, (8, 8), 2, 0.5, generator(step))
        loss = reconstruction_loss(mae(samples, hidden).samples, samples, hidden).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
