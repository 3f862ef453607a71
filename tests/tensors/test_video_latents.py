import pytest
import torch
from jaxtyping import TypeCheckError

from latentloom.errors import ShapeError
from latentloom.tensors import VideoLatents


def test_an_image_is_a_clip_of_one_frame():
    latents = VideoLatents.from_image(torch.ones(2, 16, 3, 4))
    assert latents.values.shape == (2, 16, 1, 3, 4)
    assert latents.num_frames == 1


def test_cat_of_rows_is_the_batch():
    values = torch.arange(3 * 2 * 1 * 2 * 2, dtype=torch.float32).view(3, 2, 1, 2, 2)
    batch = VideoLatents(values)
    assert torch.equal(VideoLatents.cat([batch[0], batch[1:]]).values, values)
    assert torch.equal(batch[[2, 0]].values, values[[2, 0]])
    assert len(batch[-1]) == 1


def test_moves_change_the_dtype():
    assert VideoLatents(torch.ones(1, 2, 1, 2, 2)).to(dtype=torch.float16).dtype == torch.float16


def test_other_dimensions_are_refused():
    with pytest.raises((ShapeError, TypeCheckError), match=r"B,? C,? T,? H,? W"):
        VideoLatents(torch.ones(2, 3, 4, 5))
    with pytest.raises(ShapeError, match="join"):
        VideoLatents.cat([VideoLatents(torch.ones(1, 2, 1, 2, 2)), VideoLatents(torch.ones(1, 3, 1, 2, 2))])
