"""Who owns which parameter, and that Muon on a convolution is Muon on its flattened matrix."""

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.optim import AdamW, Muon

from latentloom.training import make_optimizers, set_learning_rate
from latentloom.training.optimizers import FlattenedMuon


class Mixture(nn.Module):
    """A module with every kind of parameter that the models have."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.image = nn.Conv2d(2, 4, 3)
        self.video = nn.Conv3d(4, 4, (3, 1, 1))
        self.norm = nn.LayerNorm(4)
        self.hidden = nn.Linear(4, 6)
        self.proj_out = nn.Linear(6, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def owners(module: nn.Module, optimizers: list) -> dict[str, list[tuple[type, float]]]:
    """For each parameter, the optimizers that step on its memory, with their weight decay."""
    groups = [(type(optimizer), group) for optimizer in optimizers for group in optimizer.param_groups]
    return {
        name: [
            (kind, group["weight_decay"])
            for kind, group in groups
            for owned in group["params"]
            if owned.data_ptr() == parameter.data_ptr()
        ]
        for name, parameter in module.named_parameters()
    }


def test_every_trainable_parameter_is_owned_once_by_the_optimizer_made_for_it():
    module = Mixture()
    optimizers = make_optimizers([module], muon_lr=1e-2, adam_lr=1e-3, weight_decay=0.1, adam_names=("proj_out",))
    muon, table, vector = [(FlattenedMuon, 0.1)], [(AdamW, 0.1)], [(AdamW, 0.0)]
    assert owners(module, optimizers) == {
        "table.weight": table,
        "image.weight": muon,
        "image.bias": vector,
        "video.weight": muon,
        "video.bias": vector,
        "norm.weight": vector,
        "norm.bias": vector,
        "hidden.weight": muon,
        "hidden.bias": vector,
        "proj_out.weight": table,
        "proj_out.bias": vector,
        "frozen.weight": [],
        "frozen.bias": [],
    }


def test_parameters_of_several_modules_are_owned_once_each():
    first, second = Mixture(), nn.Linear(2, 2)
    optimizers = make_optimizers([first, second], muon_lr=1e-2, adam_lr=1e-3)
    counts = [len(owner) for module in (first, second) for owner in owners(module, optimizers).values()]
    assert counts == [1] * 11 + [0, 0] + [1, 1]


def test_an_embedding_tied_to_a_linear_layer_is_owned_once_and_not_by_muon():
    module = Mixture()
    module.proj_out = nn.Linear(4, 5, bias=False)
    module.proj_out.weight = module.table.weight
    optimizers = make_optimizers([module], muon_lr=1e-2, adam_lr=1e-3)
    assert owners(module, optimizers)["table.weight"] == [(AdamW, 0.01)]


def test_without_matrices_there_is_no_muon():
    assert [type(item) for item in make_optimizers([nn.LayerNorm(3)], muon_lr=1e-2, adam_lr=1e-3)] == [AdamW]


@given(seed=st.integers(0, 1000), kernel=st.sampled_from([(1,), (3,), (3, 3), (3, 1, 2)]))
def test_muon_on_a_convolution_is_torchs_muon_on_the_flattened_matrix(seed, kernel):
    generator = torch.Generator().manual_seed(seed)
    weight = nn.Parameter(torch.randn(4, 3, *kernel, generator=generator))
    matrix = nn.Parameter(weight.detach().flatten(1).clone())
    ours = FlattenedMuon([weight], lr=0.02, weight_decay=0.1)
    reference = Muon([matrix], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(weight.shape, generator=generator)
        weight.grad, matrix.grad = gradient.clone(), gradient.flatten(1).clone()
        ours.step()
        reference.step()
        ours.zero_grad()
        assert weight.grad is None
    assert torch.equal(weight.flatten(1), matrix)


def test_a_weight_without_gradient_stays_as_it_is():
    weights = [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, 1))]
    optimizer = FlattenedMuon(weights, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        weights[0].grad = torch.eye(2)
        optimizer.step()
    assert not torch.equal(weights[0], torch.ones(2, 2))
    assert torch.equal(weights[1], torch.ones(2, 2, 1))


def test_one_step_moves_every_trainable_parameter_that_had_a_gradient():
    torch.manual_seed(0)
    module = Mixture()
    before = {name: value.clone() for name, value in module.named_parameters()}
    optimizers = make_optimizers([module], muon_lr=1e-2, adam_lr=1e-3)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    for optimizer in optimizers:
        optimizer.step()
    moved = {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith("frozen")}


def test_rates_are_a_factor_of_those_the_optimizers_were_made_with():
    optimizers = make_optimizers([Mixture()], muon_lr=4e-3, adam_lr=2e-3)
    for factor in (0.5, 0.25, 1.0):
        set_learning_rate(optimizers, factor)
        rates = [group["lr"] for group in chain.from_iterable(item.param_groups for item in optimizers)]
        assert rates == pytest.approx([2e-3 * factor, 2e-3 * factor, 4e-3 * factor])
