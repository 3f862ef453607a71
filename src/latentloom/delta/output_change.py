"""How far adjusted embeddings move what the DiT answers."""

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import draw_noise

TIMESTEPS = (900.0, 600.0, 300.0)


@torch.no_grad()
def output_change(
    pipeline: WanPipeline, before: TextEmbeddings, after: TextEmbeddings, seed: int = 0
) -> Float[Tensor, "B"]:
    """Per prompt, |v' - v| / |v| of the predicted velocities, the mean over three timesteps; without guidance.

    Args:
        pipeline: the model; its default clip size is used.
        before, after: the same prompts.
        seed: of the noise that stands for the noisy latents; all prompts share it.
    """
    shape = pipeline.grid.shape(ClipSize.for_model(pipeline.facts))
    changes = []
    for row in range(len(before)):
        latents = draw_noise(shape, [seed], pipeline.device)
        ratios = []
        for timestep in TIMESTEPS:
            time = torch.tensor(timestep, device=pipeline.device)
            plain, moved = (pipeline.velocity(latents, time, side[row].to(pipeline.device)) for side in (before, after))
            ratios.append((moved - plain).norm() / plain.norm())
        changes.append(torch.stack(ratios).mean())
    return torch.stack(changes).cpu() if changes else torch.zeros(0)
