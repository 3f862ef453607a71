"""Which blocks of a model a node means, from the texts and curves that sockets carry."""

from collections.abc import Sequence

from latentloom.comfy.schema import Widget
from latentloom.errors import ConfigError
from latentloom.steering import block_strengths
from latentloom.steering.blocks import PRESETS

CUSTOM = "custom"
PRESET_NAMES: tuple[str, ...] = (CUSTOM, *PRESETS)
"""In the order that saved workflows know, new ones last."""
MOST_BLOCKS = 40
"""Blocks of the deepest Wan, and checkboxes on a node."""

NUM_BLOCKS = Widget(
    "num_blocks",
    MOST_BLOCKS,
    "Blocks of the model: 40 for Wan 14B, 30 for 1.3B and 5B, 6 for MicroWan.",
    low=1,
    high=MOST_BLOCKS,
    optional=True,
)

BlockStrengths = tuple[float, ...]
"""What a BLOCK_STRENGTHS socket carries: one strength per block, 0 to 1."""


def strengths_for(
    pattern: str, num_blocks: int, strength: float, curve: Sequence[float] | None = None
) -> tuple[float, ...]:
    """One strength per block of the model.

    Args:
        pattern: one `0` or `1` per block, a preset's name, or a list such as `0-9,20`; zeros alone mean no block.
        num_blocks: of the model.
        strength: for all chosen blocks.
        curve: in the pattern's place, strengths of its own per block; each is multiplied by `strength`.

    Raises:
        ConfigError: a pattern or a curve for another number of blocks, or one that is not understood.
    """
    if curve is not None:
        if len(curve) != num_blocks:
            raise ConfigError(_of_another_depth("strengths", len(curve), num_blocks, "Block Strength Builder"))
        return tuple(value * strength for value in curve)
    text = pattern.strip()
    if text and set(text) == {"0"}:
        return (0.0,) * num_blocks
    if len(text) > 1 and set(text) <= {"0", "1"} and len(text) != num_blocks:
        raise ConfigError(_of_another_depth("pattern", len(text), num_blocks, "Block Activation Builder"))
    return block_strengths(text, num_blocks, strength)


def check_pattern(block_activations: str) -> str | None:
    """A message where a pattern is none, whatever the model; None where it may be one."""
    text = block_activations.strip()
    if set(text) <= {"0", "1"} and len(text) > 1:
        return None
    block_strengths(text, MOST_BLOCKS)
    return None


def _of_another_depth(what: str, given: int, num_blocks: int, node: str) -> str:
    return f"the {what} is for {given} blocks and this model has {num_blocks}; set num_blocks of the {node}"
