"""A strength of its own for every block."""

from latentloom.comfy.curves import BACKGROUND, BELLS, SHAPES, CurveSettings, build_curve, read_points
from latentloom.comfy.pattern_text import ranges
from latentloom.comfy.patterns import MOST_BLOCKS, NUM_BLOCKS, BlockStrengths
from latentloom.comfy.schema import Node, Output, Shown, Widget

SHADES = "░▒▓█"
MOST_SEED = 2**31 - 1


def build_strengths(
    pattern: str,
    base_strength: float,
    peak_block: int = 20,
    spread: float = 5.0,
    step_size: int = 5,
    num_blocks: int = MOST_BLOCKS,
    curve: str = "",
    random_seed: int = 0,
    **per_block: float,
) -> Shown:
    """A strength per block, and the same as text; the page draws them as they are set."""
    custom = {block: per_block.get(f"block_{block}_strength", 0.0) for block in range(MOST_BLOCKS)}
    settings = CurveSettings(base_strength, peak_block, spread, step_size, custom, read_points(curve), random_seed)
    strengths = build_curve(pattern, num_blocks, settings)
    unused = [block for block, strength in custom.items() if strength and (pattern != "custom" or block >= num_blocks)]
    text = describe(pattern, strengths)
    if unused:
        why = f"the model has {num_blocks} blocks" if pattern == "custom" else f"pattern {pattern} does not read them"
        text += f"\nnot used: the strengths of blocks {ranges(unused)}; {why}"
    if curve.strip() and pattern != "curve":
        text += f"\nnot used: the drawn curve; pattern {pattern} does not read it"
    return Shown((strengths, text), text)


def check_strengths(pattern: str, peak_block: int, num_blocks: int, curve: str) -> str | None:
    """A message where these cannot go together; None where they can."""
    build_curve(pattern, num_blocks, CurveSettings(peak_block=peak_block, points=read_points(curve)))
    return None


def describe(pattern: str, strengths: BlockStrengths) -> str:
    """The curve as shades, its extent, and every strength, ten to a line."""
    active = sum(map(bool, strengths))
    mean = sum(strengths) / len(strengths)
    lines = [
        "".join(SHADES[min(3, int(strength * 3.999) if strength else 0)] for strength in strengths),
        f"{pattern}: {active} of {len(strengths)} blocks, "
        f"strength {min(strengths):.2f} to {max(strengths):.2f}, mean {mean:.2f}",
    ]
    for first in range(0, len(strengths), 10):
        part = strengths[first : first + 10]
        lines.append(f"block {first:2d}  " + " ".join(f"{strength:.2f}" for strength in part))
    return "\n".join(lines)


BUILDER = Node(
    id="WanVideoBlockStrengthBuilder",
    name="Block Strength Builder",
    topic="Steering",
    description="Makes one strength per block of the transformer, from a shape, from numbers, or from a drawn curve.",
    inputs=(
        Widget("pattern", "uniform", "Shape of the strengths over the blocks.", options=tuple(SHAPES)),
        Widget(
            "base_strength",
            0.5,
            "The largest strength of every pattern; custom and curve have their own values and do not read it.",
            low=0,
            high=1,
            step=0.01,
        ),
        Widget(
            "peak_block",
            20,
            f"Number of the block in the middle of the bell, below num_blocks. Read by {' and '.join(BELLS)}.",
            low=0,
            high=MOST_BLOCKS - 1,
            optional=True,
        ),
        Widget(
            "spread",
            5.0,
            f"Width of the bell in blocks: its standard deviation. Read by {' and '.join(BELLS)}.",
            low=0.5,
            high=20,
            step=0.5,
            optional=True,
        ),
        Widget("step_size", 5, "Blocks per step. Read by stepped.", low=1, high=20, optional=True),
        *(
            Widget(
                f"block_{block}_strength",
                0.0,
                f"Strength of block {block}. Read by custom.",
                low=0,
                high=1,
                step=0.01,
                optional=True,
            )
            for block in range(MOST_BLOCKS)
        ),
        NUM_BLOCKS,
        Widget(
            "curve",
            "",
            "Points of a drawn curve as [[x, y], ...], from 0 to 1: x is the depth, y the strength. Read by curve.",
            optional=True,
            kind="curve",
        ),
        Widget("random_seed", 0, "Chooses the numbers. Read by random.", low=0, high=MOST_SEED, optional=True),
    ),
    outputs=(
        Output("block_strengths", "BLOCK_STRENGTHS", "One strength per block, for an Activation Editor."),
        Output("strength_visualization", "STRING", "The strengths as text."),
    ),
    run=build_strengths,
    check=check_strengths,
    help=f"""
Gives every block of the transformer its own injection strength. Link `block_strengths` to an Activation Editor:
it takes the place of the editor's pattern, and the editor's `injection_strength` multiplies it. Set
`num_blocks` to the depth of the model first.

- **uniform**: `base_strength` everywhere; **linear_rise**, **linear_decay**: from 0 to it, or from it to 0
- **gaussian_peak**: a bell around `peak_block`, `spread` blocks wide; **inverse_gaussian**: a hole there
- **sine_wave**: one wave over the depth, highest after a quarter; **stepped**: `step_size` blocks on, as many
  off
- **focus_early**, **focus_mid**, **focus_late**: the first quarter, the middle half or the last quarter of the
  blocks at `base_strength`, the others at {BACKGROUND:.0%} of it
- **random**: anything up to `base_strength`, by `random_seed`; **custom**: the numbers below; **curve**: as
  drawn

Quarters and waves follow the model's depth. `peak_block`, `spread` and `step_size` are counted in blocks: for a
model of fewer blocks make them smaller, such as 3, 1 and 2 for MicroWan.
""",
)

NODES: tuple[Node, ...] = (BUILDER,)
