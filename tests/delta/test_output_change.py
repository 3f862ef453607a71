"""How far a DiT's answer moves, by its definition."""

import pytest
import torch

from latentloom.delta.output_change import TIMESTEPS, output_change
from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import draw_noise


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, dtype=torch.float32, device="cpu")


def test_the_change_is_the_mean_ratio_of_norms_over_the_timesteps(pipeline: WanPipeline):
    before, after = pipeline.encode(["red circle", "blue"]), pipeline.encode(["red square", "blue"])
    changes = output_change(pipeline, before, after, seed=3)
    noise = draw_noise(pipeline.grid.shape(ClipSize.for_model(pipeline.facts)), [3], pipeline.device)
    ratios = []
    with torch.no_grad():
        for timestep in TIMESTEPS:
            plain, moved = (pipeline.velocity(noise, torch.tensor(timestep), side[[0]]) for side in (before, after))
            ratios.append(((moved - plain).norm() / plain.norm()).item())
    assert changes.tolist() == pytest.approx([sum(ratios) / 3, 0.0], rel=1e-5)
    assert changes[0] > 0


def test_no_prompt_has_no_change(pipeline: WanPipeline):
    empty = TextEmbeddings(torch.zeros(0, 16), torch.zeros(0, dtype=torch.long))
    assert output_change(pipeline, empty, empty).shape == (0,)
