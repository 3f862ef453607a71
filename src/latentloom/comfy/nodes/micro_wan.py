"""MicroWan as a checkpoint to try everything with."""

from typing import Any

from latentloom.comfy.schema import Node, Output


def load_micro_wan() -> tuple[Any, Any, Any]:
    """MicroWan in ComfyUI's own classes."""
    from latentloom.comfy.micro.native import MicroWanClip, MicroWanVae, load_native_model

    return load_native_model(), MicroWanClip.load(), MicroWanVae.load()


def load_micro_wan_for_wrapper() -> tuple[Any, Any, Any]:
    """MicroWan in the classes of ComfyUI-WanVideoWrapper."""
    from latentloom.comfy.micro.wrapper import WrapperVae, load_wrapper_model, load_wrapper_text_encoder

    return load_wrapper_model(), load_wrapper_text_encoder(), WrapperVae.load()


def empty_clip_for_wrapper() -> tuple[dict[str, Any]]:
    """The size of MicroWan's clips, as the wrapper's sampler takes it."""
    from latentloom.comfy.micro.wrapper import empty_clip

    return (empty_clip(),)


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

WRAPPER_LOADER = Node(
    id="LatentLoomMicroWanWrapperLoader",
    name="MicroWan Loader (WanVideoWrapper)",
    topic="MicroWan",
    description="A Wan model of a few megabytes that ships with LatentLoom, for ComfyUI-WanVideoWrapper's nodes.",
    inputs=(),
    outputs=(
        Output("model", "WANVIDEOMODEL", "For WanVideo Sampler: 20 steps, cfg 3, shift 3, unipc."),
        Output("t5", "WANTEXTENCODER", "For WanVideo TextEncode; it knows moving shapes, colours and sizes."),
        Output("vae", "WANVAE", "For WanVideo Decode."),
    ),
    run=load_micro_wan_for_wrapper,
)

WRAPPER_EMPTY_CLIP = Node(
    id="LatentLoomMicroWanEmptyEmbeds",
    name="MicroWan Empty Embeds (WanVideoWrapper)",
    topic="MicroWan",
    description="A clip of 9 frames of 48 x 48 to fill, smaller than WanVideo Empty Embeds allows.",
    inputs=(),
    outputs=(Output("image_embeds", "WANVIDIMAGE_EMBEDS", "For WanVideo Sampler."),),
    run=empty_clip_for_wrapper,
)

NODES: tuple[Node, ...] = (NATIVE_LOADER, WRAPPER_LOADER, WRAPPER_EMPTY_CLIP)
