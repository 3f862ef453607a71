"""Block-level injection: which blocks, what into them, how strongly, and when."""

from typing import Any

from latentloom.comfy.hosts import Host
from latentloom.comfy.injecting import (
    BLOCKS_TOOLTIP,
    LOG_LEVEL,
    STRENGTHS,
    WHEN,
    check_injection,
    choose_target,
    inject,
    record_on_text,
)
from latentloom.comfy.log import LogLevel, NodeLog
from latentloom.comfy.patterns import (
    CUSTOM,
    MOST_BLOCKS,
    NUM_BLOCKS,
    PRESET_NAMES,
    BlockStrengths,
)
from latentloom.comfy.schema import HOST_MODEL, HOST_TEXT, Node, Output, Shown, Socket, Widget, for_both_hosts
from latentloom.steering import PromptPayload, compare
from latentloom.steering.blocks import parse_blocks, picture
from latentloom.steering.plan import Side, Site
from latentloom.tensors import TextEmbeddings

LOW_DIFFERENCE = 0.5
"""Relative L2 of two prompts below which the document expects no visible effect."""
#: Injection mode -> where the prompt is injected.
SITES: dict[str, tuple[Site, ...]] = {
    "context": ("context",),
    "hidden_states": ("hidden_states",),
    "both": ("context", "hidden_states"),
}


def edit_activations(
    host: Host,
    model: Any,
    text_embeds: Any,
    injection_strength: float,
    block_activations: str,
    enable_patching: bool,
    log_level: LogLevel,
    injection_mode: str,
    injection_embeds: Any = None,
    block_strengths: BlockStrengths | None = None,
    side: Side = "cond",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    node_id: str | None = None,
) -> tuple[Any, Any]:
    """The model with the injection and the text with its record; both as they came where the node is switched off."""
    log = NodeLog("Activation Editor", node_id, log_level)
    if not enable_patching or injection_embeds is None:
        log.basic("switched off" if injection_embeds is not None else "nothing to inject: link injection_embeds")
        return model, text_embeds
    window = (start_percent, end_percent)
    target = choose_target(
        host, model, log, injection_mode, block_activations, injection_strength, block_strengths, side, window
    )
    if target is None:
        return model, text_embeds
    injected = host.read_single(injection_embeds)
    noted = {"difference": _difference(host.read_text(text_embeds), injected, log)}
    operations = tuple(target.operation(site, "lerp", PromptPayload(injected)) for site in SITES[injection_mode])
    edited, record = inject(host, model, target, operations, log, log_level, noted)
    return edited, record_on_text(host, text_embeds, record)


def build_activations(preset: str, num_blocks: int = MOST_BLOCKS, **checked: bool) -> Shown:
    """A pattern of one digit per block, from a preset or from the boxes that are checked."""
    if preset == CUSTOM:
        chosen = tuple(block for block in range(num_blocks) if checked.get(f"block_{block}", False))
    else:
        chosen = parse_blocks(preset, num_blocks)
    pattern = "".join("1" if block in chosen else "0" for block in range(num_blocks))
    return Shown((pattern,), text=f"{picture([float(mark) for mark in pattern])} {len(chosen)} of {num_blocks} blocks")


def _difference(text: TextEmbeddings, injected: TextEmbeddings, log: NodeLog) -> float:
    difference = float(compare(text[0], injected[0]).figures.relative_l2)
    log.verbose(f"the prompts differ by {difference:.0%} of their length")
    if difference < LOW_DIFFERENCE:
        log.warn(f"the prompts differ by {difference:.0%} only, so the injection will hardly show; see the amplifier")
    return difference


EDITOR = Node(
    id="WanVideoActivationEditor",
    name="Activation Editor",
    topic="Steering",
    description="Injects another prompt into chosen blocks of the transformer, by a strength, for all or some steps.",
    inputs=(
        Socket("model", HOST_MODEL, "The model to steer; it stays as it is, and the output is a copy that is steered."),
        Socket("text_embeds", HOST_TEXT, "The prompt that is sampled."),
        Widget("injection_strength", 0.5, "Share of the injected prompt in a chosen block.", low=0, high=1, step=0.01),
        Widget("block_activations", "0" * MOST_BLOCKS, BLOCKS_TOOLTIP),
        Widget("enable_patching", True, "Off: the model and the prompt go through as they are."),
        LOG_LEVEL,
        Widget("injection_mode", "context", "What is changed in a block.", options=tuple(SITES)),
        Socket("injection_embeds", HOST_TEXT, "The prompt to inject.", optional=True),
        STRENGTHS,
        *WHEN,
    ),
    outputs=(
        Output("model", HOST_MODEL, "The steered model, for the sampler."),
        Output("text_embeds", HOST_TEXT, "The prompt that is sampled, with a record of the edit."),
    ),
    run=edit_activations,
    check=check_injection,
    help="""
While the sampler runs, the chosen blocks read the injected prompt, or a mixture of both. At strength 0 the clip is that
of the main prompt to the last bit; with all blocks at strength 1 it is that of the injected prompt.

- `context` replaces what the blocks' cross-attention reads; it is exact and costs next to nothing. `hidden_states`
  moves the video tokens themselves towards those of a run with the injected prompt, and runs the model twice per step.
- Mixtures are uneven: half of a prompt is often none of it. Start with strength 1 in some blocks rather than with a low
  strength in all; which blocks carry what, `latentloom steer sweep` tells for a model.
- A window should reach the end of the schedule. What is injected in the first steps alone, later steps write over.
- The text that comes out is the main prompt with a record of the edit; use it or the one that went in, the clip is the
  same. Switch the node off, bypass or remove it, and nothing of it stays in the model.
""",
)

BUILDER = Node(
    id="WanVideoBlockActivationBuilder",
    name="Block Activation Builder",
    topic="Steering",
    description="Chooses blocks of the transformer, by a preset or one by one.",
    inputs=(
        Widget("preset", CUSTOM, "Which blocks; custom takes the blocks below.", options=PRESET_NAMES),
        *(
            Widget(f"block_{block}", False, f"Whether block {block} is active.", optional=True)
            for block in range(MOST_BLOCKS)
        ),
        NUM_BLOCKS,
    ),
    outputs=(Output("block_activations", "STRING", "One 0 or 1 per block."),),
    run=build_activations,
    help="""
Choose a preset, then change single blocks in the grid: a click or a drag toggles them, and the preset becomes `custom`.

- Presets are shares of the depth: `early_blocks` is the first quarter, `mid_blocks` the middle half, `late_blocks` the
  last quarter, `alternating` every second and `sparse` every fourth block.
- Set `num_blocks` to the model's depth: a pattern for another depth is refused by the node that uses it.
- The output is plain text, one digit per block; it may also be typed, as digits, as `mid_blocks`, or as `0-9,20`.
""",
)

NODES: tuple[Node, ...] = (*for_both_hosts(EDITOR), BUILDER)
