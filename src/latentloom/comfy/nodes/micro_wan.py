"""MicroWan as a checkpoint to try everything with, and what can be read from its clips."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from latentloom.comfy.schema import Node, Output, Shown, Socket
from latentloom.errors import ConfigError
from latentloom.micro.attributes import Attributes
from latentloom.micro.read import Reading, read_clips


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


def read_attributes(images: Float[Tensor, "F H W C"]) -> Shown:
    """One sentence on the object of a clip, and on the node what it was decided from.

    Args:
        images: F square frames of one clip, values from 0 to 1; channels beyond RGB are not looked at.

    Raises:
        ConfigError: the frames are not square.
    """
    _, height, width, _ = images.shape
    if height != width:
        raise ConfigError(f"the frames are {width} x {height}; clips of MicroWan are square, 48 x 48")
    (reading,) = read_clips(images[..., :3].permute(3, 0, 1, 2).unsqueeze(0).cpu())
    sentence = describe(reading.attributes)
    return Shown((sentence,), text=f"{sentence}\n{_evidence(reading)}")


def describe(attributes: Attributes) -> str:
    """The attributes in words, such as "small red circle moving left on black"."""
    if attributes.shape is None:
        return f"nothing on {attributes.background}"
    motion = "standing still" if attributes.motion == "still" else f"moving {attributes.motion}"
    return f"{attributes.size} {attributes.colour} {attributes.shape} {motion} on {attributes.background}"


def _evidence(reading: Reading) -> str:
    if reading.attributes.shape is None:
        return "no object stands out from the background"
    x, y = reading.way
    measured = f"radius {reading.radius:.1f} px, way {x:+.1f} px right and {y:+.1f} px down"
    return f"{measured}, misfit of the shape {reading.misfit:.2f}"


_TRY_IT = (
    "It is trained on one kind of clip: a shape (circle, square, triangle, cross) in one of six colours, small or "
    "large, that moves or stays, on black, white or gray. A prompt is a sentence such as\n\n"
    "> A small red circle moves to the left on a black background."
)

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
    help=f"""\
Loads the whole of MicroWan: ComfyUI's own Wan transformer with 6 blocks, a text encoder and a VAE. Nothing is
downloaded. Use it to see within seconds what an edit does before you try it on a large model.

{_TRY_IT}

- Start from Empty HunyuanVideo Latent with 48 x 48 and 9 frames; other sizes come out worse.
- KSampler: 20 steps, cfg 3, uni_pc, simple. Its shift is 3 already.
- It has 6 blocks: set `num_blocks` of the builders to 6.
""",
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
    help=f"""\
Loads the whole of MicroWan for the nodes of ComfyUI-WanVideoWrapper, which must be installed: its own transformer with
6 blocks, a text encoder and a VAE. Nothing is downloaded.

{_TRY_IT}

- Give the sampler a MicroWan Empty Embeds; the smallest clip of WanVideo Empty Embeds, 64 x 64, is one that MicroWan
  does not know, and most of those clips come out empty.
- WanVideo Sampler: 20 steps, cfg 3, shift 3, unipc.
- It has 6 blocks: set `num_blocks` of the builders to 6.
""",
)

WRAPPER_EMPTY_CLIP = Node(
    id="LatentLoomMicroWanEmptyEmbeds",
    name="MicroWan Empty Embeds (WanVideoWrapper)",
    topic="MicroWan",
    description="A clip of 9 frames of 48 x 48 to fill, smaller than WanVideo Empty Embeds allows.",
    inputs=(),
    outputs=(Output("image_embeds", "WANVIDIMAGE_EMBEDS", "For WanVideo Sampler."),),
    run=empty_clip_for_wrapper,
    help="""\
Tells WanVideo Sampler to make a clip of the only size that MicroWan was trained on. There is nothing to set.

Use WanVideo Empty Embeds for every other model.
""",
)

READER = Node(
    id="LatentLoomAttributeReader",
    name="Attribute Reader",
    topic="MicroWan",
    description="Says in words what a clip of MicroWan shows, measured from its pixels.",
    inputs=(Socket("images", "IMAGE", "The frames of one clip, after decoding."),),
    outputs=(Output("description", "STRING", 'Such as "small red circle moving left on black".'),),
    run=read_attributes,
    shows=True,
    help="""\
Finds the background, the object's colour, shape and size, and where it moves, by measuring: no model looks at the
clip. Put one after each of two samplers to see in words what an edit changed.

- It knows only what MicroWan draws. Of any other clip it names whatever is nearest.
- The second line is what it decided from. A misfit near 0 is a clean shape; above 0.3 the shape is a guess.
- The whole clip is one reading: do not join two clips before it.
""",
)

NODES: tuple[Node, ...] = (NATIVE_LOADER, WRAPPER_LOADER, WRAPPER_EMPTY_CLIP, READER)
