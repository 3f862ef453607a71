"""One call of a transformer while sampling, as systems that act inside its blocks see it."""

from dataclasses import dataclass

from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from jaxtyping import Float, Num
from torch import Tensor

from latentloom.tensors import TextEmbeddings


@dataclass(frozen=True, eq=False)
class ModelCall:
    """What goes into one call.

    Args:
        model: the transformer, or the expert in charge.
        latents: noised clips, one per row of the batch.
        timestep: 0 to 1,000.
        text: one prompt per row.
        conditional: per row, true where the prompt is the positive one and false where guidance leaves it out.
        clips: per row, which of all the clips of the run it is.
        progress: share of the schedule that lies behind, from 0 up to but not including 1.
    """

    model: WanTransformer3DModel
    latents: Float[Tensor, "B C T H W"]
    timestep: Num[Tensor, ""]
    text: TextEmbeddings
    conditional: tuple[bool, ...]
    clips: tuple[int, ...]
    progress: float


def schedule_progress(sigma: float, shift: float) -> float:
    """The share of a schedule's steps that lies before this noise level, whatever the number of steps.

    Args:
        sigma: noise level, 0 to 1.
        shift: of the schedule; see `wan.sampling.build_scheduler`, whose formula is turned around here.
    """
    evenly_spaced = sigma / (shift - (shift - 1) * sigma)
    return min(max(0.0, 1.0 - evenly_spaced), 1.0)
