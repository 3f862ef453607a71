"""A training: exact after an interruption, the same in two processes, and every weight in the right hands."""

import importlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from latentloom.drifting.config import DriftConfig
from latentloom.drifting.data import load_data
from latentloom.drifting.frozen_encoder import make_encoder
from latentloom.drifting.mae import LatentMae, MaeShape, save_mae
from latentloom.drifting.optimizers import make_drift_optimizers
from latentloom.drifting.refiner import ADAM_NAMES, PatchRefiner, RefinerShape
from latentloom.drifting.train import CURVE_NAME, STATE_NAME, effective_batch
from latentloom.drifting.train_images import train_refiner
from latentloom.errors import CheckpointError
from latentloom.runs import launch_processes
from latentloom.training import read_curve

CPU = torch.device("cpu")
TINY = {
    **{"device": "cpu", "dataset": "fake", "image_size": 8, "fake_classes": 4, "fake_images": 64, "patch_size": 2},
    **{"width": 16, "depth": 1, "num_heads": 2, "steps": 6, "warmup": 2, "log_every": 1, "save_every": 2},
    **{"n_classes_step": 2, "n_gen_per_class": 3, "drift_n_pos": 4, "queue_pos": 6, "drift_n_neg": 2, "queue_neg": 5},
    **{"drift_n_unc": 5, "queue_unc": 20, "vanilla_loss_weight": 0.5, "feature_space": "mae", "ema_decay": 0.9},
}


@pytest.fixture(scope="module")
def tiny_mae(tmp_path_factory):
    """The file of an autoencoder with random weights."""
    path = tmp_path_factory.mktemp("mae") / "mae.safetensors"
    torch.manual_seed(7)
    save_mae(path, LatentMae(MaeShape(channels=3, width=4, stages=2, blocks=1)), {})
    return path


@pytest.fixture
def settings(tiny_mae):
    return lambda **changes: DriftConfig.model_validate({**TINY, "feature_checkpoint": tiny_mae, **changes})


def train(config, folder, evaluate=None, seed=0):
    data = load_data(config, CPU)
    return train_refiner(data, make_encoder(config, data, folder, CPU), config, seed, folder, CPU, evaluate)


def measured(folder):
    timings = ("seconds", "step_seconds")
    lines = read_curve(folder / CURVE_NAME)
    return [{key: value for key, value in line.items() if key not in timings} for line in lines]


def largest_difference(one, other):
    first, second = load_file(one / STATE_NAME), load_file(other / STATE_NAME)
    assert first.keys() == second.keys()
    return {name: float((first[name].double() - second[name].double()).abs().max()) for name in first}


class Interruption:
    """Evaluates, and interrupts the training at the second checkpoint."""

    def __init__(self):
        self.num_calls = 0

    def __call__(self, refiner):
        self.num_calls += 1
        if self.num_calls == 2:
            raise KeyboardInterrupt
        return {"eval/weight": float(refiner.network.position.norm())}


def evaluate(refiner):
    return {"eval/weight": float(refiner.network.position.norm())}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("objective", ["drift", "mse"])
def test_an_interrupted_training_comes_to_the_very_same_end(settings, tmp_path, optimizer, objective):
    config = settings(optimizer=optimizer, objective=objective, grad_accum=2, num_levels=2, noise_std=0.1)
    whole = train(config, tmp_path / "whole", evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "halves", Interruption())
    assert int(load_file(tmp_path / "halves" / STATE_NAME)["step"]) == 2
    assert read_curve(tmp_path / "halves" / CURVE_NAME)[-1]["step"] == 2  # past the state: made again
    torch.manual_seed(123)  # nothing may hang on the global generator
    halves = train(config, tmp_path / "halves", evaluate)
    assert set(largest_difference(tmp_path / "whole", tmp_path / "halves").values()) == {0.0}
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(weight, halves.network.state_dict()[name])
    assert measured(tmp_path / "whole") == measured(tmp_path / "halves")
    assert [line["step"] for line in measured(tmp_path / "whole")] == list(range(6))
    state = load_file(tmp_path / "whole" / STATE_NAME)
    assert any(name.startswith("optimizer0/") for name in state)
    assert ("positives/samples" in state) == (objective == "drift")


def test_what_is_returned_is_the_average_and_frozen(settings, tmp_path):
    refiner = train(settings(), tmp_path)
    state = load_file(tmp_path / STATE_NAME)
    moved = False
    for name, weight in refiner.network.named_parameters():
        assert torch.equal(weight, state[f"average/{name}"])
        assert not weight.requires_grad
        moved = moved or not torch.equal(weight, state[f"refiner/{name}"])
    assert moved
    assert not refiner.network.training


def test_a_finished_state_is_not_trained_further(settings, tmp_path):
    once = train(settings(), tmp_path)
    before = measured(tmp_path)
    again = train(settings(), tmp_path)
    assert measured(tmp_path) == before
    assert torch.equal(once.network.position, again.network.position)


def test_the_state_of_another_training_is_refused(settings, tmp_path):
    train(settings(steps=1), tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        train(settings(width=32), tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        train(settings(), tmp_path, seed=1)
    with pytest.raises(CheckpointError, match="another run"):
        train(settings(queue_pos=7), tmp_path)


def test_seeds_are_different_trainings_and_the_same_one_is_the_same(settings, tmp_path):
    one, same, other = (
        train(settings(steps=2), tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert torch.equal(one.network.position, same.network.position)
    assert not torch.equal(one.network.position, other.network.position)


def test_two_processes_train_as_one_with_the_doubled_batch(tiny_mae, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # spawned processes take over the path
    ranks = importlib.import_module("drift_ranks")
    common = {**TINY, "feature_checkpoint": tiny_mae, "grad_accum": 2, "steps": 3, "noise_std": 0.1}
    common |= {"num_levels": 2, "n_classes_step": 1}
    launch_processes(ranks.train, 2, common, str(tmp_path / "two"))
    ranks.train(0, {**common, "n_classes_step": 2}, str(tmp_path / "one"))
    for objective in ("drift", "mse"):
        one, two = tmp_path / "one" / objective, tmp_path / "two" / objective
        differences = largest_difference(one, two)
        others = {name: value for name, value in differences.items() if not name.startswith("optimizer")}
        assert max(others.values()) < 1e-5, max(others, key=others.__getitem__)  # weights, averages, banks, sampler
        assert {"refiner/blocks.0.qkv.weight", "average/position", "sampler/places"} <= others.keys()
        for alone, joined in zip(read_curve(one / CURVE_NAME), read_curve(two / CURVE_NAME), strict=True):
            for key in ("loss", "gradient_norm", "lr"):
                assert alone[key] == pytest.approx(joined[key], rel=1e-4)


def test_a_regression_learns(settings, tmp_path):
    train(settings(objective="mse", steps=60, lr=3e-3, save_every=60, n_classes_step=4, n_gen_per_class=8), tmp_path)
    lines = measured(tmp_path)
    last = sum(line["loss"] for line in lines[-10:]) / 10
    interpolation = sum(line["interp/mse_all"] for line in lines[-10:]) / 10
    assert last < 0.7 * interpolation


def test_bfloat16_computes_and_keeps_float32_weights(settings, tmp_path):
    refiner = train(settings(amp_bf16=True, steps=2), tmp_path)
    for weight in refiner.network.parameters():
        assert weight.dtype == torch.float32
        assert bool(weight.isfinite().all())


def test_more_classes_than_the_data_has_are_taken_again(settings, tmp_path):
    train(settings(n_classes_step=9, steps=2), tmp_path)
    assert all(line["loss"] > 0 for line in measured(tmp_path))


def test_an_optimizer_step_sees_all_batches_of_all_classes(settings):
    assert effective_batch(settings(grad_accum=3)) == 2 * 3 * 3


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_weight_is_owned_once_and_muon_has_the_hidden_matrices_alone(settings, optimizer):
    refiner = PatchRefiner(RefinerShape(num_patches=16, num_values=12, num_classes=4, num_levels=2, width=16, depth=2))
    optimizers = make_drift_optimizers(refiner, settings(optimizer=optimizer), ADAM_NAMES)
    names = {weight.data_ptr(): name for name, weight in refiner.named_parameters()}
    owners = [
        [names[weight.data_ptr()] for group in each.param_groups for weight in group["params"]] for each in optimizers
    ]
    assert sorted(name for owned in owners for name in owned) == sorted(names.values())
    if optimizer == "muon":
        by_adam, by_muon = owners
        kinds = ("qkv", "out", "mlp.0", "mlp.2")
        assert sorted(by_muon) == sorted(f"blocks.{number}.{kind}.weight" for number in range(2) for kind in kinds)
        for part in ("patch_in", "patch_out", "of_alpha.0", "of_alpha.2", "of_class", "of_level"):
            assert f"{part}.weight" in by_adam
    for group in (group for each in optimizers for group in each.param_groups):
        assert all((weight.ndim >= 2) == (group["weight_decay"] > 0) for weight in group["params"])
