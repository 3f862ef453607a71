"""The README that travels with MicroWan's weights."""

from latentloom.micro.attributes import UNSEEN_PAIRS
from latentloom.micro.config import BuildConfig
from latentloom.wan import facts

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-video
---

# MicroWan

The classes of Wan 2.2 (`UMT5EncoderModel`, `WanTransformer3DModel`, `AutoencoderKLWan`) at a few megabytes, trained
from nothing by `latentloom micro build` (seed {seed}) on a procedurally drawn, captioned world. It is a measuring
instrument, not a general video model: each clip shows one plain shape, so what a prompt changed can be read from the
pixels.

| part | parameters |
|---|---|
{parts}

- Clips: {sampling.width} x {sampling.height} pixels, {sampling.num_frames} frames, {sampling.fps} frames per second.
- It knows six colours, four shapes, two sizes, five motions and three backgrounds in the words of the seen lexicon
  (`latentloom.micro.lexicon`). The text encoder has read all three lexicons as text and is frozen; the DiT has met
  the seen one only. Neither has met a tenth of the attribute combinations, or the pairs {pairs}.
- Sampling: UniPC, {sampling.steps} steps, shift {sampling.shift:g}, guidance {sampling.guidance:g}.
- Training data are drawn by the code; no picture, video or text of anyone is in them.
"""


def model_card(config: BuildConfig, num_parameters: dict[str, int]) -> str:
    """Markdown for the folder of weights.

    Args:
        config: the recipe.
        num_parameters: by part.
    """
    return _CARD.format(
        seed=config.seed,
        sampling=facts.get("micro"),
        parts="\n".join(f"| {name} | {count:,} |" for name, count in num_parameters.items()),
        pairs=" and ".join(" ".join(pair) for pair in UNSEEN_PAIRS),
    )
