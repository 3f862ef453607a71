"""What the training stages share: randomness by step, and one clipped step."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from latentloom.micro.loop import step_generator, take_step


def test_each_step_of_each_process_and_seed_draws_its_own_numbers_again_and_again():
    def first_draw(seed: int, step: int, rank: int) -> float:
        return float(torch.rand((), generator=step_generator(seed, step, rank), dtype=torch.float64))

    keys = [(seed, step, rank) for seed in (0, 1, 7) for step in (0, 1, 2, 5000) for rank in (0, 1)]
    draws = [first_draw(*key) for key in keys]
    assert len(set(draws)) == len(keys)
    assert [first_draw(*key) for key in keys] == draws


def test_a_step_moves_by_the_gradient_where_it_is_short():
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    take_step(module(torch.tensor([[0.3, -0.4]])).sum(), [module], [SGD(module.parameters(), lr=1.0)])
    assert torch.allclose(before - module.weight, torch.tensor([[0.3, -0.4]]))


def test_the_gradient_over_all_modules_is_shortened_to_the_limit():
    modules = [nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)]
    before = torch.cat([module.weight.detach().clone() for module in modules])
    inputs = torch.tensor([[30.0, 40.0]])
    optimizers = [SGD(module.parameters(), lr=1.0) for module in modules]
    take_step(torch.cat([module(inputs) for module in modules]).sum(), modules, optimizers, clip=0.5)
    moved = before - torch.cat([module.weight.detach() for module in modules])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)
    assert torch.allclose(moved, inputs / inputs.norm() * 0.5 / 2**0.5, rtol=1e-4)


def test_gradients_do_not_pile_up_from_step_to_step_and_unused_weights_stay():
    used, unused = nn.Linear(2, 1, bias=False), nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in unused.parameters()]
    start = used.weight.detach().clone()
    optimizer = SGD([*used.parameters(), *unused.parameters()], lr=1.0)
    for _ in range(3):
        take_step(used(torch.tensor([[0.1, 0.2]])).sum(), [used, unused], [optimizer])
    assert torch.allclose(start - used.weight, torch.tensor([[0.3, 0.6]]))
    assert all(torch.equal(old, new) for old, new in zip(before, unused.parameters(), strict=True))
