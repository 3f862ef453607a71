"""Samples a steered MicroWan before and after compiling it; a program of its own, since the checks of annotations that
tests install cannot be compiled."""

import sys
from typing import cast

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from torch import Tensor

from latentloom.micro import default_checkpoint
from latentloom.steering.hosts.diffusers import steer
from latentloom.steering.plan import DirectionPayload, Operation, Plan, PromptPayload
from latentloom.wan.pipeline import WanPipeline


def compile_model(pipeline: WanPipeline, way: str, backend: str) -> None:
    if way == "blocks":
        for block in pipeline.transformer.blocks:
            block.compile(backend=backend)
    elif way == "in_place":
        pipeline.transformer.compile(backend=backend)
    else:
        pipeline.transformer = cast(WanTransformer3DModel, torch.compile(pipeline.transformer, backend=backend))


def main(way: str, backend: str) -> None:
    torch.set_num_threads(1)
    pipeline = WanPipeline.load(default_checkpoint(), device="cpu")
    text = pipeline.encode(["A small red circle moves to the left on a black background."])
    inject = PromptPayload(pipeline.encode(["A large green cross moves up."]))
    turn = DirectionPayload(torch.randn(6, 128, generator=torch.Generator().manual_seed(0)))
    everywhere = Operation("context", "lerp", (0.2, 0.4, 0.6, 0.7, 0.8, 0.9), inject)
    early = Operation("hidden_states", "add", (0.1, 0.2, 0.0, 0.0, 0.0, 0.0), turn)
    late = Operation("context", "lerp", (0.0, 0.0, 0.0, 0.0, 1.0, 0.5), inject)

    def before_during_after() -> list[Tensor]:
        def sample() -> Tensor:
            return pipeline.generate(text, seeds=[1], steps=1)[1].values

        clips = [sample()]
        for operations in ((late,), (everywhere, early)):
            with steer(pipeline, Plan(operations)):
                clips.append(sample())
        return [*clips, sample()]

    eager = before_during_after()
    assert not any(torch.allclose(eager[0], steered, atol=0.1) for steered in eager[1:3])
    compile_model(pipeline, way, backend)
    for compiled, expected in zip(before_during_after(), eager, strict=True):
        torch.testing.assert_close(compiled, expected, atol=2e-4, rtol=1e-4)


if __name__ == "__main__":
    main(*sys.argv[1:])
