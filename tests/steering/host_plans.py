"""One plan of every kind for MicroWan, and what steering through diffusers makes of it: what other hosts must equal."""

import functools

import torch
from torch import Tensor

from latentloom.steering.blocks import block_strengths
from latentloom.steering.capture import capture_activations
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import (
    ActivationsPayload,
    DirectionPayload,
    Operation,
    Payload,
    Plan,
    PlanePayload,
    PromptPayload,
    RowsPayload,
)
from latentloom.steering.projection import project_rows
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.pipeline import WanPipeline

PROMPTS = ["A small red circle moves to the left on a black background.", "blue square"]
INJECTED = ["A large green cross moves up on a white background. It is large."]
TIMESTEP = 600.0
CASES = [
    *(
        (site, method, payload)
        for site in ("context",)
        for method in ("replace", "lerp")
        for payload in ("prompt", "rows")
    ),
    ("context", "add", "rows"),
    *(
        (site, method, "activations")
        for site in ("hidden_states", "attention_output")
        for method in ("replace", "lerp", "add")
    ),
    *(
        (site, method, "plane" if method == "rotate" else "direction")
        for site in ("context", "hidden_states", "attention_output")
        for method in ("add", "add_keep_norm", "ablate", "rotate")
    ),
]
"""(site, method, payload) that every host carries out."""

SECOND_RUN_CASES = [
    (site, method, "prompt") for site in ("hidden_states", "attention_output") for method in ("replace", "lerp")
]
"""Those for which the model is run a second time."""

#: Strengths at which each method changes much and leaves much.
STRENGTHS = {"lerp": "0.3..0.8", "replace": 1.0, "add": 2.0, "add_keep_norm": 3.0, "ablate": 2.0, "rotate": 1.5}


@functools.cache
def clips() -> Tensor:
    """Two noised clips of MicroWan's size."""
    return torch.randn(2, 16, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def operation(
    pipeline: WanPipeline,
    site: str = "context",
    method: str = "lerp",
    payload: str = "prompt",
    blocks: str = "1-4",
    **rest,
) -> Operation:
    """A strong operation of this kind on MicroWan."""
    strengths = block_strengths(blocks, 6, STRENGTHS[method])
    return Operation(site, method, strengths, made(pipeline, payload, site), **rest)  # pyright: ignore[reportArgumentType]


def made(pipeline: WanPipeline, kind: str, site: str) -> Payload:
    """A payload of this kind, the same at every call."""
    text = pipeline.encode(INJECTED)
    directions = torch.randn(2, 6, 128, generator=torch.Generator().manual_seed(0)).mul(2).unbind()
    match kind:
        case "prompt":
            return PromptPayload(text)
        case "rows":
            with torch.no_grad():
                rows = project_rows(pipeline.transformer, text.padded(int(text.lengths.max())))
            return RowsPayload(TextEmbeddings.from_padded(rows, lengths=text.lengths))
        case "activations":
            latents = VideoLatents(clips()[:1])
            return ActivationsPayload(capture_activations(pipeline, latents, TIMESTEP, text, range(6), site))  # pyright: ignore[reportArgumentType]
        case "plane":
            return PlanePayload(*directions)
        case _:
            return DirectionPayload(directions[0])


def steered(pipeline: WanPipeline, plan: Plan | None, row: int = 0, prompt: str | None = None) -> Tensor:
    """The velocity of one clip through diffusers, with the plan or plain."""
    text = pipeline.encode([PROMPTS[row] if prompt is None else prompt])
    latents, timestep = clips()[[row]], torch.tensor(TIMESTEP)
    with torch.no_grad():
        if plan is None:
            return pipeline.velocity(latents, timestep, text)
        with steer(pipeline, plan):
            return pipeline.velocity(latents, timestep, text)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Return if two velocities are equal but for the rounding of 512 rows of padding against one."""
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
