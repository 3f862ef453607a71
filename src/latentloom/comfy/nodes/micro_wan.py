"""MicroWan as a checkpoint to try everything with."""

from typing import Any

from latentloom.comfy.schema import Node, Output


def load_micro_wan() -> tuple[Any, Any, Any]:
    """MicroWan in ComfyUI's own classes."""
    from latentloom.comfy.micro.native import MicroWanClip, MicroWanVae, load_native_model

    return load_native_model(), MicroWanClip.load(), MicroWanVae.load()


NATIVE_LOADER = Node(
    id="LatentLoomMicroWanLoader",
    name="MicroWan Loader",
    topic="MicroWan",
    description="A Wan model of a few megabytes that ships with LatentLoom; clips of 48 x 48 in seconds on a CPU.",
    inputs=(),
    outputs=(
        Output("model", "MODEL", "For KSampler: 20 steps, cfg 3, uni_pc or euler, simple."),
        Output("clip", "CLIP", "For CLIP Text Encode; it knows moving shapes, colours, sizes and backgrounds."),
        Output("vae", "VAE", "For VAE Decode."),
    ),
    run=load_micro_wan,
)

NODES: tuple[Node, ...] = (NATIVE_LOADER,)
