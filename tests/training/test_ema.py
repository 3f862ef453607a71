"""The weight average: its warm-up, its values, its precision, its state."""

import pytest
import torch
from torch import nn

from latentloom.training import WeightAverage


def constant_module(value: float, dtype: torch.dtype = torch.float32) -> nn.Linear:
    module = nn.Linear(3, 2).to(dtype)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def test_the_first_updates_forget_faster_than_the_decay():
    average = WeightAverage(constant_module(0.0), decay=0.98)
    expected = 0.0
    for update in range(1, 6):
        average.update(constant_module(1.0))
        decay = update / (update + 10)
        expected = decay * expected + (1 - decay)
        assert average.weights["weight"].flatten().tolist() == pytest.approx([expected] * 6)
    assert expected > 0.998  # after five updates the start is all but forgotten


def test_after_the_warm_up_the_decay_itself_is_used():
    average = WeightAverage(constant_module(0.0), decay=0.5)
    for _ in range(10):
        average.update(constant_module(1.0))
    before = float(average.weights["bias"][0])
    average.update(constant_module(3.0))
    assert float(average.weights["bias"][0]) == pytest.approx(0.5 * before + 0.5 * 3.0)


def test_the_average_of_a_half_precision_module_is_kept_in_float32():
    module = constant_module(0.0, torch.bfloat16)
    average = WeightAverage(module, decay=0.9)
    for step in range(20):
        average.update(constant_module(1 + step / 128, torch.bfloat16))
    assert average.weights["weight"].dtype == torch.float32
    average.copy_to(module)
    assert module.weight.dtype == torch.bfloat16
    assert torch.equal(module.weight, average.weights["weight"].bfloat16())


def test_the_average_does_not_share_memory_with_the_module():
    module = constant_module(1.0)
    average = WeightAverage(module, decay=0.9)
    nn.init.constant_(module.weight, 5.0)
    assert average.weights["weight"].unique().tolist() == [1.0]
    average.copy_to(module)
    nn.init.constant_(module.weight, 7.0)
    assert average.weights["weight"].unique().tolist() == [1.0]


def test_a_restored_average_goes_on_as_if_it_had_never_stopped():
    whole, first = WeightAverage(constant_module(0.0), 0.9), WeightAverage(constant_module(0.0), 0.9)
    for value in range(5):
        whole.update(constant_module(float(value)))
        first.update(constant_module(float(value)))
    second = WeightAverage(constant_module(-1.0), 0.9)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for average in (whole, second):
        average.update(constant_module(9.0))
    assert second.num_updates == 6
    assert torch.equal(second.weights["weight"], whole.weights["weight"])


def test_frozen_weights_are_neither_averaged_nor_written():
    module = constant_module(1.0)
    module.bias.requires_grad_(False)
    average = WeightAverage(module, decay=0.9)
    average.update(constant_module(2.0))
    assert average.state_dict().keys() == {"weight", "num_updates"}
    other = constant_module(5.0).requires_grad_(False)  # whoever uses an average freezes it
    average.copy_to(other)
    assert torch.equal(other.weight, average.weights["weight"])
    assert other.bias.unique().tolist() == [5.0]
