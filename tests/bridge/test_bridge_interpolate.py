"""Steps between two sentence vectors turn evenly, at lengths between theirs."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.bridge.decoding import DecodingConfig, decode
from latentloom.bridge.interpolate import interpolate_texts, interpolate_vectors
from latentloom.bridge.model import LatentBridge
from latentloom.errors import ConfigError, ShapeError
from latentloom.tensors import SentenceVector


def drawn(seed: int, length: float, dim: int = 12) -> SentenceVector:
    values = torch.randn(1, dim, generator=torch.Generator().manual_seed(seed))
    return SentenceVector(values / values.norm() * length)


@given(st.integers(0, 500), st.integers(501, 999), st.floats(0.1, 30), st.floats(0.1, 30), st.integers(2, 9))
def test_spherical_steps_are_even_in_angle_and_in_length(
    first: int, second: int, length: float, other: float, num_steps: int
) -> None:
    a, b = drawn(first, length), drawn(second, other)
    steps = interpolate_vectors(a, b, num_steps)
    torch.testing.assert_close(steps.values.norm(dim=1), torch.linspace(length, other, num_steps))
    angles = steps[:-1].cosine(steps[1:]).double().acos()
    torch.testing.assert_close(
        angles, (a.cosine(b).double().acos() / (num_steps - 1)).expand(num_steps - 1), atol=2e-3, rtol=0
    )
    assert torch.equal(steps.values[0], a.values[0])
    assert torch.equal(steps.values[-1], b.values[0])


def test_a_straight_line_is_shorter_in_the_middle() -> None:
    a, b = SentenceVector(torch.tensor([[1.0, 0.0]])), SentenceVector(torch.tensor([[0.0, 1.0]]))
    straight = interpolate_vectors(a, b, 3, "linear").values[1]
    torch.testing.assert_close(straight, torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(interpolate_vectors(a, b, 3).values[1], straight / straight.norm())


def test_nearly_equal_directions_are_interpolated_all_the_same() -> None:
    a = drawn(0, 1.0)
    for shift in (0.0, 1e-7, 1e-5, 1e-3):
        steps = interpolate_vectors(a, SentenceVector(2 * a.values + shift), 5).values
        assert bool(steps.isfinite().all())
        torch.testing.assert_close(steps[2], 1.5 * a.values[0] + shift / 2, atol=1e-3, rtol=1e-3)


def test_vectors_without_an_arc_between_are_refused() -> None:
    a = drawn(0, 1.0)
    with pytest.raises(ConfigError, match="opposite directions"):
        interpolate_vectors(a, SentenceVector(-3 * a.values), 5)
    with pytest.raises(ConfigError, match="zeros has no direction"):
        interpolate_vectors(a, SentenceVector(0 * a.values), 5)
    assert len(interpolate_vectors(a, SentenceVector(-a.values), 5, "linear")) == 5
    with pytest.raises(ConfigError, match="give at least 2"):
        interpolate_vectors(a, a, 1)
    with pytest.raises(ShapeError, match=r"\(1, 12\) and \(1, 5\); give one each"):
        interpolate_vectors(a, drawn(1, 1.0, 5), 3)


def test_the_ends_say_what_the_two_vectors_say(tiny_backbone: Backbone) -> None:
    torch.manual_seed(0)
    bridge = LatentBridge(tiny_backbone, ModelConfig(lora=LoraConfig(rank=0)), 12)
    ends, config = SentenceVector.cat([drawn(1, 1.0), drawn(2, 1.0)]), DecodingConfig(max_new_tokens=6)
    found = interpolate_texts(bridge, ends[0:1], ends[1:2], 5, config=config)
    assert found.shares.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [found.texts[0], found.texts[-1]] == [texts[0] for texts in decode(bridge, ends, config)]
    assert found.texts == [texts[0] for texts in decode(bridge, found.vectors, config)]
