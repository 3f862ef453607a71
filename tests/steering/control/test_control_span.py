"""Taking out the span of several vectors leaves nothing that any of them tells apart."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latentloom.errors import ConfigError
from latentloom.steering.control.span import ablate_span
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.operations import ablate
from latentloom.steering.plan import DirectionPayload, Operation


def family(seed: int, count: int = 3, windows: tuple[tuple[float, float], ...] = ((0.0, 1.0),)) -> list[ControlVector]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(windows), 2, 16)
    return [ControlVector("context", torch.randn(shape, generator=generator), "micro", windows) for _ in range(count)]


def carried_out(operations: tuple[Operation, ...], tokens: Tensor, block: int) -> Tensor:
    for operation in operations:
        assert isinstance(operation.payload, DirectionPayload)
        if operation.strengths[block]:
            tokens = ablate(tokens, operation.payload.vectors[block], torch.tensor(operation.strengths[block]))
    return tokens


@given(st.integers(0, 1000), st.integers(1, 6))
def test_no_vector_of_the_family_is_left_in_any_block(seed, count):
    controls = family(seed, count)
    tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed + 1))
    for block in range(2):
        left = carried_out(ablate_span(controls), tokens, block)
        for control in controls:
            assert (left @ control.directions[0, block]).abs().max() < 1e-3


def test_one_after_the_other_would_leave_some():
    """Why the span is made orthonormal first."""
    controls = family(0, 2)
    tokens = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(1))
    separately = tuple(op for control in controls for op in control.operations(1.0, "ablate"))
    left = carried_out(separately, tokens, 0)
    assert (left @ controls[0].directions[0, 0]).abs().max() > 0.1


def test_values_that_add_up_to_nothing_span_one_direction_less():
    first, second = family(3, 2)
    third = -(first + second)
    assert len(ablate_span([first, second, third])) == 2
    assert len(ablate_span([first, first * 2.0])) == 1


def test_every_window_has_its_own_span_and_blocks_can_be_left_alone():
    operations = ablate_span(family(0, 2, ((0.0, 0.5), (0.5, 1.0))), strength=0.5, blocks=(1.0, 0.0))
    assert [operation.window for operation in operations] == [(0.0, 0.5)] * 2 + [(0.5, 1.0)] * 2
    assert {operation.strengths for operation in operations} == {(0.5, 0.0)}


def test_a_block_with_fewer_directions_is_left_alone_by_the_rest():
    first, second = family(0, 2)
    alone = torch.zeros(1, 2, 16)
    alone[0, 0] = second.directions[0, 0]
    operations = ablate_span([first, ControlVector("context", alone, "micro")])
    assert [operation.strengths for operation in operations] == [(1.0, 1.0), (1.0, 0.0)]


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(ConfigError, match="give at least one"):
        ablate_span([])
    other = ControlVector("attention_output", torch.ones(1, 2, 16), "micro")
    with pytest.raises(ConfigError):
        ablate_span([family(0, 1)[0], other])
    with pytest.raises(ConfigError, match="3 shares for 2 blocks"):
        ablate_span(family(0, 1), blocks=(1.0, 1.0, 1.0))
