import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ShapeError
from latentloom.tensors import SentenceVector


@given(st.integers(0, 2**16), st.floats(1e-3, 1e3))
def test_cosine_does_not_depend_on_length(seed, scale):
    values = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    cosine = SentenceVector(values).cosine(SentenceVector(values * scale))
    assert torch.allclose(cosine, torch.ones(4), atol=1e-5)


def test_cosine_of_known_angles():
    one = SentenceVector(torch.tensor([[1.0, 0.0], [1.0, 0.0], [3.0, 4.0]]))
    other = SentenceVector(torch.tensor([[0.0, 2.0], [-5.0, 0.0], [4.0, 3.0]]))
    assert one.cosine(other).tolist() == pytest.approx([0.0, -1.0, 0.96], abs=1e-6)
    assert one.cosine(other[0]).tolist() == pytest.approx([0.0, 0.0, 0.8], abs=1e-6)


def test_normalized_keeps_the_dtype_and_leaves_zero_at_zero():
    vectors = SentenceVector(torch.tensor([[30000.0, 40000.0], [0.0, 0.0]], dtype=torch.float16)).normalized()
    assert vectors.dtype == torch.float16
    assert vectors.values.float().norm(dim=-1).tolist() == pytest.approx([1.0, 0.0], abs=1e-3)


def test_widths_must_agree():
    with pytest.raises(ShapeError, match="cannot be compared"):
        SentenceVector(torch.ones(1, 2)).cosine(SentenceVector(torch.ones(1, 3)))
    with pytest.raises(ShapeError, match="widths"):
        SentenceVector.cat([SentenceVector(torch.ones(1, 2)), SentenceVector(torch.ones(1, 3))])
