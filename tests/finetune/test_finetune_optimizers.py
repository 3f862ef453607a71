"""Every optimizer moves weights, decays them, and goes on from its saved state as if it had never stopped."""

import math
from importlib.util import find_spec

import pytest
import torch
from bitsandbytes.optim.adamw import AdamW8bit
from optimizer_kinds import KINDS, NEEDS_TORCHAO
from safetensors.torch import load, save
from torch import nn
from torch.optim import AdamW, Muon

from latentloom.errors import CheckpointError, ConfigError
from latentloom.finetune.config import OptimizerConfig
from latentloom.finetune.optimizers import keeps_model_dtype, load_optimizer_state, make_optimizer, optimizer_state

SHAPES = {"blocks.0.q.weight": (64, 72), "blocks.0.k.weight": (67, 65), "shared.weight": (9, 8), "norm.bias": (5,)}


def config_of(kind: str, **options) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"type": kind, "lr": 1e-3, "weight_decay": 0.1} | options)


def weights_for(config: OptimizerConfig, seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.bfloat16 if keeps_model_dtype(config) else torch.float32
    return {name: nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in SHAPES.items()}


def step_on(weights: dict[str, nn.Parameter], optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_saved_and_loaded_ends_with_the_same_bits_as_one_that_was_not(kind):
    config = config_of(kind)
    whole, halves = weights_for(config), weights_for(config)
    step_on(whole, make_optimizer(config, {"dit": list(whole.items())}, seed=3), range(6))

    first = make_optimizer(config, {"dit": list(halves.items())}, seed=3)
    step_on(halves, first, range(4))
    stored = {key: value.clone() for key, value in optimizer_state(first, halves).items()}
    resumed = {name: nn.Parameter(weight.detach().clone()) for name, weight in halves.items()}
    second = make_optimizer(config, {"dit": list(resumed.items())}, seed=3)
    torch.manual_seed(99)
    load_optimizer_state(second, resumed, load(save(stored)))
    step_on(resumed, second, range(4, 6))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name
        assert not torch.equal(weight, weights_for(config)[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_is_found_by_name_whatever_the_order_and_without_the_weights_of_other_stages(kind):
    config = config_of(kind)
    weights = weights_for(config)
    optimizer = make_optimizer(config, {"dit": list(weights.items())})
    step_on(weights, optimizer, range(2))
    stored = optimizer_state(optimizer, weights)
    assert {key.rpartition("/")[0] for key in stored} == set(SHAPES)
    part = {name: nn.Parameter(weights[name].detach().clone()) for name in ("norm.bias", "blocks.0.q.weight")}
    other = make_optimizer(config, {"dit": list(part.items())})
    load_optimizer_state(other, part, stored)
    step_on({name: weights[name] for name in part}, optimizer, range(2, 3))
    step_on(part, other, range(2, 3))
    again, expected = optimizer_state(other, part), optimizer_state(optimizer, weights)
    assert again
    assert all(torch.equal(value, expected[key]) for key, value in again.items())


@pytest.mark.parametrize("kind", KINDS)
def test_without_parameters_a_step_does_nothing(kind):
    optimizer = make_optimizer(config_of(kind), {"te": [], "dit": []})
    optimizer.step()
    optimizer.zero_grad()
    assert optimizer_state(optimizer, {}) == {}
    assert [group["peak_lr"] for group in optimizer.param_groups] == [1e-3]


@pytest.mark.parametrize("kind", KINDS)
def test_each_part_has_its_rate_and_vectors_are_not_decayed(kind):
    config = config_of(kind, lr_te=1e-5)
    encoder, adapter = weights_for(config), weights_for(config)
    optimizer = make_optimizer(config, {"te": list(encoder.items()), "dit": list(adapter.items())})
    for group in optimizer.param_groups:
        rate = 1e-5 if group["name"] == "te" else 1e-3
        assert group["lr"] == group["initial_lr"] == group["peak_lr"] == rate
        assert group["weight_decay"] == (0.0 if group["params"][0].ndim < 2 else 0.1)
    owned = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in owned} == {id(p) for p in [*encoder.values(), *adapter.values()]}
    assert len(owned) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_is_set_between_steps_is_the_one_that_is_taken(kind):
    config = config_of(kind, lr=0.05)
    weights = weights_for(config)
    optimizer = make_optimizer(config, {"dit": list(weights.items())})
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    step_on(weights, optimizer, range(1))
    assert all(torch.equal(weight, weights_for(config)[name]) for name, weight in weights.items())
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    step_on(weights, optimizer, range(1, 2))
    assert not any(torch.equal(weight, weights_for(config)[name]) for name, weight in weights.items())


def size_of(weights: dict[str, nn.Parameter]) -> float:
    return sum(weight.detach().float().abs().sum().item() for weight in weights.values() if weight.ndim > 1)


def decayed(kind: str, steps: int) -> float:
    """By what factor weights shrink whose gradient is zero."""
    config = config_of(kind, lr=1e-4, weight_decay=0.5)
    weights = weights_for(config)
    before = size_of(weights)
    optimizer = make_optimizer(config, {"te": list(weights.items())})
    for _ in range(steps):
        for weight in weights.values():
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
    return size_of(weights) / before


@pytest.mark.parametrize("kind", KINDS)
def test_a_decay_far_below_bfloat16s_precision_still_shrinks_weights(kind):
    assert decayed(kind, 200) == pytest.approx(math.exp(-200 * 1e-4 * 0.5), abs=5e-4)


def test_bitsandbytes_alone_loses_that_decay_in_bfloat16():
    weight = nn.Parameter(torch.randn(64, 64).bfloat16())
    before = weight.detach().clone()
    optimizer = AdamW8bit([weight], lr=1e-4, weight_decay=0.5)
    for _ in range(200):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(64, 65), (3, 5)])
def test_kahan_in_bfloat16_is_bitsandbytes_in_float32(shape):
    full = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().float())
    half = nn.Parameter(full.detach().bfloat16())
    reference = AdamW8bit([full], lr=1e-4, weight_decay=0.1)
    optimizer = make_optimizer(config_of("AdamW8bitKahan", lr=1e-4), {"te": [("w", half)]})
    for step in range(50):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step)).bfloat16()
        half.grad, full.grad = gradient, gradient.float()
        optimizer.step()
        reference.step()
        assert (half.float() - full).abs().max() <= full.abs().max() / 256
    from latentloom.training.adamw_kahan import join_halves

    assert torch.equal(join_halves(half.detach(), optimizer.state[half]["remainder"]), full)


def test_a_weight_of_several_chunks_moves_as_in_one(monkeypatch):
    def moved() -> torch.Tensor:
        weights = {"w": nn.Parameter(torch.linspace(-1, 1, 9000).bfloat16().view(90, 100))}
        step_on(weights, make_optimizer(config_of("AdamW8bitKahan"), {"dit": list(weights.items())}), range(3))
        return weights["w"].detach()

    whole = moved()
    monkeypatch.setattr("latentloom.training.adamw_kahan._CHUNK", 512)
    assert torch.equal(moved(), whole)


def test_halves_are_the_nearest_bfloat16_and_lose_nothing():
    from latentloom.training.adamw_kahan import join_halves, split_halves

    bits = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(0))
    full = torch.cat([bits.int().view(torch.float32), torch.tensor([1.00390625, -1.00390625, 0.0, -0.0, math.inf])])
    full = full[full.isfinite() & (full.abs() < 3e38)]
    high, low = split_halves(full)
    assert torch.equal(join_halves(high, low).view(torch.int32), full.view(torch.int32))
    assert torch.equal((high.float() - full).abs(), (full.bfloat16().float() - full).abs())
    broken = torch.tensor([math.nan, math.inf, -math.inf])
    assert torch.equal(join_halves(*split_halves(broken)).isfinite(), torch.zeros(3, dtype=torch.bool))


@NEEDS_TORCHAO
def test_stochastic_rounding_leaves_the_global_random_state_alone_and_depends_on_its_seed():
    config = config_of("adamw8bit")
    results = []
    for seed in (0, 0, 1):
        weights = weights_for(config)
        torch.manual_seed(5)
        expected = torch.random.get_rng_state()
        step_on(weights, make_optimizer(config, {"dit": list(weights.items())}, seed=seed), range(2))
        assert torch.equal(torch.random.get_rng_state(), expected)
        results.append(weights["blocks.0.q.weight"].detach())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@NEEDS_TORCHAO
def test_small_second_moments_follow_a_fading_gradient_although_weights_are_bfloat16():
    config = config_of("adamw8bit")
    weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.bfloat16))
    optimizer = make_optimizer(config, {"dit": [("w", weight)]})
    for step in range(100):
        weight.grad = torch.full_like(weight, 1.0 if step == 0 else 0.0)
        optimizer.step()
    assert optimizer.state[weight]["exp_avg_sq"].mean().item() == pytest.approx(1e-3 * 0.999**99, rel=1e-3)


class Both:
    """Muon over the matrices and AdamW over the rest, one after the other."""

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        matrices = [weights["blocks.0.q.weight"], weights["blocks.0.k.weight"]]
        table, vector = {"params": [weights["shared.weight"]]}, {"params": [weights["norm.bias"]], "weight_decay": 0.0}
        self.muon = Muon(matrices, lr=1e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW([table, vector], lr=1e-3, weight_decay=0.1)

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()


def test_muon_moves_matrices_as_torchs_muon_does_and_adamw_everything_else():
    config = config_of("muon")
    weights, references = weights_for(config), weights_for(config)
    optimizer = make_optimizer(config, {"te": list(weights.items())})
    both = Both(references)
    step_on(weights, optimizer, range(3))
    step_on(references, both, range(3))
    assert all(torch.equal(weight, references[name]) for name, weight in weights.items())

    fresh = make_optimizer(config, {"te": list(weights.items())})
    fresh.load_state_dict(optimizer.state_dict())
    step_on(weights, fresh, range(3, 5))
    step_on(references, both, range(3, 5))
    assert all(torch.equal(weight, references[name]) for name, weight in weights.items())


def test_the_state_of_a_weight_of_another_size_is_refused_by_name():
    config = config_of("adamw")
    weights = {"a": nn.Parameter(torch.ones(3, 4))}
    optimizer = make_optimizer(config, {"dit": list(weights.items())})
    step_on(weights, optimizer, range(1))
    other = {"a": nn.Parameter(torch.ones(4, 4))}
    with pytest.raises(CheckpointError, match=r"of a has the shape \(3, 4\), the weight \(4, 4\)"):
        load_optimizer_state(
            make_optimizer(config, {"dit": list(other.items())}),
            other,
            optimizer_state(optimizer, weights),
        )


@pytest.mark.skipif(find_spec("torchao") is not None, reason="torchao is installed")
def test_an_optimizer_of_a_library_that_is_missing_is_refused_in_one_line():
    config = config_of("adamw8bit")
    with pytest.raises(ConfigError, match=r'needs torchao; .*or use "AdamW8bitKahan"'):
        make_optimizer(config, {"dit": list(weights_for(config).items())})
