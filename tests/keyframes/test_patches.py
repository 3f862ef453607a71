"""Patch tokens are the image in another order, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.errors import ShapeError
from latentloom.keyframes import patchify, unpatchify


@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    patch=st.integers(1, 4),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_unpatchify_gives_the_image_back_bit_for_bit_and_patchify_the_tokens(
    batch, channels, patch, rows, columns, seed
):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, channels, rows * patch, columns * patch, generator=generator)
    tokens = patchify(images, patch)
    assert tokens.shape == (batch, rows * columns, channels * patch * patch)
    assert torch.equal(unpatchify(tokens, patch, channels, rows, columns), images)
    assert torch.equal(patchify(unpatchify(tokens, patch, channels, rows, columns), patch), tokens)


def test_a_token_holds_its_patch_channel_by_channel_and_tokens_go_row_by_row():
    images = torch.arange(2 * 2 * 4 * 6.0).view(2, 2, 4, 6)
    tokens = patchify(images, 2)
    for number, (row, column) in enumerate([(0, 0), (0, 2), (0, 4), (2, 0), (2, 2), (2, 4)]):
        assert torch.equal(tokens[:, number], images[:, :, row : row + 2, column : column + 2].flatten(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype):
    tokens = patchify(torch.ones(1, 1, 4, 4, dtype=dtype), 2)
    assert tokens.dtype == unpatchify(tokens, 2, 1, 2, 2).dtype == dtype


@pytest.mark.parametrize("patch", [0, -1, 3, 8])
def test_a_patch_that_does_not_tile_the_image_is_refused(patch):
    with pytest.raises(ShapeError, match=rf"patches of side {patch} do not tile images of 4x6"):
        patchify(torch.zeros(1, 1, 4, 6), patch)


@pytest.mark.parametrize(("patch", "channels", "rows", "columns"), [(2, 1, 2, 2), (2, 3, 2, 3), (1, 3, 2, 2)])
def test_numbers_the_tokens_were_not_cut_with_are_refused(patch, channels, rows, columns):
    with pytest.raises(ShapeError, match="4 tokens of 12 values are not"):
        unpatchify(torch.zeros(1, 4, 12), patch, channels, rows, columns)
