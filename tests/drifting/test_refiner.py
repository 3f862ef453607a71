"""The network: nothing at first, then a correction that hangs on its conditions; and its file."""

import pytest
import torch

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.corruption import Keypatches
from latentloom.drifting.refiner import PatchRefiner, RefinerShape
from latentloom.drifting.refiner_files import Refiner, load_refiner, save_refiner
from latentloom.errors import CheckpointError, FileError
from latentloom.storage import read_module, save_module


def new_refiner(**changes):
    torch.manual_seed(0)
    shape = {"num_patches": 4, "num_values": 3, "num_classes": 5, "num_levels": 2, "width": 16, "depth": 2}
    return PatchRefiner(RefinerShape(**{**shape, "num_heads": 2, **changes}))


def inputs(num=3):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(num, 4, 3, generator=generator)
    given = torch.tensor([True, False, False, True]).expand(num, -1)
    return [tokens, given, torch.arange(num), torch.zeros(num, dtype=torch.int64), torch.full((num,), 1.5)]


def trained_a_little(refiner, steps=3):
    optimizer = torch.optim.AdamW(refiner.parameters(), lr=1e-2)
    tokens, *conditions = inputs()
    target = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(2))
    for _ in range(steps):
        optimizer.zero_grad()
        (refiner(tokens, *conditions) - target).square().mean().backward()
        optimizer.step()
    return refiner


@pytest.fixture(scope="module")
def trained():
    return trained_a_little(new_refiner())


def test_a_new_refiner_changes_nothing():
    tokens, *conditions = inputs()
    assert torch.equal(new_refiner()(tokens, *conditions), tokens)


def test_every_weight_gets_a_gradient_once_it_has_moved():
    refiner = trained_a_little(new_refiner(), steps=2)
    tokens, *conditions = inputs()
    refiner.zero_grad()
    refiner(tokens, *conditions).square().mean().backward()
    without = [name for name, weight in refiner.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("place", "other"),
    [
        (1, torch.tensor([True, True, False, True]).expand(3, -1)),
        (2, torch.tensor([4, 4, 4])),
        (3, torch.ones(3, dtype=torch.int64)),
        (4, torch.full((3,), 4.0)),
    ],
    ids=["given", "class", "level", "alpha"],
)
def test_each_condition_matters_after_a_step(trained, place, other):
    values = inputs()
    before = trained(*values)
    values[place] = other
    assert (trained(*values) - before).abs().amax(dim=(1, 2)).min() > 1e-5


def test_a_patch_is_refined_from_all_patches(trained):
    tokens, *conditions = inputs()
    changed = tokens.clone()
    changed[:, 3] += 1
    difference = trained(changed, *conditions) - trained(tokens, *conditions)
    assert difference[:, 1].abs().min() > 1e-6


def test_images_do_not_see_each_other(trained):
    together = trained(*inputs())
    alone = torch.cat([trained(*(part[i : i + 1] for part in inputs())) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_fixed_anchors_come_back_bit_for_bit_and_only_they():
    refiner = trained_a_little(new_refiner(keep_anchors_fixed=True))
    tokens, given, *conditions = inputs()
    refined = refiner(tokens, given, *conditions)
    assert torch.equal(refined[given], tokens[given])
    assert (refined - tokens)[~given].abs().min() > 0
    free = trained_a_little(new_refiner())(tokens, given, *conditions)
    assert (free - tokens)[given].abs().min() > 0


def test_tokens_keep_their_dtype_under_autocast(trained):
    tokens, *conditions = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        refined = trained(tokens, *conditions)
        halves = trained(tokens.bfloat16(), *conditions)
    assert (refined.dtype, halves.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(refined, trained(tokens, *conditions), atol=0.05)


def test_a_strong_guidance_strength_is_finite(trained):
    tokens, given, classes, level, _ = inputs()
    for alpha in (1.0, 1e4):
        assert trained(tokens, given, classes, level, torch.full((3,), alpha)).isfinite().all()


def test_a_file_rebuilds_the_refiner_with_its_settings(tmp_path):
    config = DriftConfig.model_validate(
        {"dataset": "fake", "image_size": 8, "width": 16, "noise_std": 0.1, "seeds": (3, 4)}
    )
    keypatches = Keypatches(config, (3, 8, 8))
    refiner = trained_a_little(new_refiner())
    wide = new_refiner(num_values=keypatches.num_values)
    save_refiner(tmp_path / "refiner.safetensors", Refiner(wide, keypatches), config, {"seed": 3})
    loaded, settings = load_refiner(tmp_path / "refiner.safetensors")
    assert settings == config
    assert loaded.keypatches.counts == keypatches.counts
    assert loaded.network.shape == wide.shape
    assert not loaded.network.training
    for name, weight in loaded.network.named_parameters():
        assert torch.equal(weight, wide.get_parameter(name))
        assert not weight.requires_grad
    assert read_module(tmp_path / "refiner.safetensors").record == {"seed": 3}

    stored = read_module(tmp_path / "refiner.safetensors")
    save_module(tmp_path / "other.safetensors", refiner.state_dict(), "PatchRefiner", stored.config, None)
    with pytest.raises(CheckpointError, match="does not hold the tensors"):
        load_refiner(tmp_path / "other.safetensors")
    save_module(tmp_path / "mae.safetensors", refiner.state_dict(), "LatentMae", stored.config, None)
    with pytest.raises(FileError, match="LatentMae"):
        load_refiner(tmp_path / "mae.safetensors")
