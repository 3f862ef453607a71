"""Arithmetic on texts before the model reads them: differences, sums, sequences, and texts moved further apart."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from latentloom.comfy.hosts import Host
from latentloom.comfy.schema import HOST_TEXT, Node, Output, Shown, Socket, Widget, for_both_hosts
from latentloom.comfy.store import record_operation
from latentloom.errors import ConfigError
from latentloom.steering.embeddings.alignment import match_prompts
from latentloom.steering.embeddings.amplify import MOVES, AmplifyMethod, amplify
from latentloom.steering.embeddings.arithmetic import (
    Combined,
    add,
    difference,
    multiply,
    normalize,
    prompt_norms,
    weighted_sum,
)
from latentloom.steering.embeddings.interpolation import CURVES, MAX_STEPS, MIN_STEPS, InterpolateMethod, interpolate
from latentloom.steering.measure import THRESHOLD, compare
from latentloom.tensors import TextEmbeddings

#: Names of the node -> what is done.
OPERATIONS: dict[str, Callable[..., Combined]] = {
    "add": add,
    "weighted_sum": weighted_sum,
    "multiply": multiply,
    "normalize": normalize,
}
ALL_STEPS = -1
FRAMES_PER_STEP = 4
"""Of one latent frame: WanVideoWrapper gives each of several prompts at least one."""
MIDDLE = 2
"""Of the five steps that the interpolation has at first."""


def subtract_texts(
    host: Host,
    text_embeds_a: Any,
    text_embeds_b: Any,
    normalize: bool,
    scale: float,
    store_in_db: bool = False,
) -> Shown:
    """A less B, with everything else of A."""
    operands = [host.read_text(text_embeds_a), host.read_text(text_embeds_b)]
    started = time.perf_counter()
    made = difference(*operands, normalize=normalize, scale=scale)
    seconds = time.perf_counter() - started
    settings = {"normalize": normalize, "scale": scale}
    lines = [f"A - B, {'at norm 1, ' if normalize else ''}times {scale:g}", *_account(operands, made)]
    if store_in_db:
        lines.append(record_operation(host, "difference", operands, made.embeddings, settings, seconds))
    return Shown((host.write_text(text_embeds_a, made.embeddings),), "\n".join(lines))


def combine_texts(
    host: Host,
    base_embeds: Any,
    operation: str,
    operand_1: Any = None,
    weight_1: float = 1.0,
    operand_2: Any = None,
    weight_2: float = 1.0,
    operand_3: Any = None,
    weight_3: float = 1.0,
    store_in_db: bool = False,
) -> Shown:
    """The base, with weight 1, and the operands that are linked, with theirs; everything else is the base's."""
    pairs = [(operand_1, weight_1), (operand_2, weight_2), (operand_3, weight_3)]
    linked = [(host.read_text(operand), weight) for operand, weight in pairs if operand is not None]
    operands = [host.read_text(base_embeds), *(operand for operand, _ in linked)]
    weights = [1.0, *(weight for _, weight in linked)]
    started = time.perf_counter()
    made = OPERATIONS[operation](*operands, weights=weights)
    seconds = time.perf_counter() - started
    lines = [f"{operation} with weights {', '.join(f'{weight:g}' for weight in weights)}", *_account(operands, made)]
    if not linked:
        lines.append("no operand is linked, so this is base_embeds alone")
    if store_in_db:
        lines.append(record_operation(host, operation, operands, made.embeddings, {"weights": weights}, seconds))
    return Shown((host.write_text(base_embeds, made.embeddings),), "\n".join(lines))


def interpolate_texts(
    host: Host,
    start_embeds: Any,
    end_embeds: Any,
    steps: int,
    method: InterpolateMethod,
    include_endpoints: bool,
    position: int = ALL_STEPS,
    store_in_db: bool = False,
) -> Shown:
    """All steps from start to end as prompts of one text, or one of them; everything else is the start's.

    Raises:
        ConfigError: a position beyond the steps.
    """
    refused = check_position(steps, position)
    if refused:
        raise ConfigError(refused)
    operands = [host.read_text(start_embeds), host.read_text(end_embeds)]
    started = time.perf_counter()
    made = interpolate(*operands, method=method, steps=steps, endpoints=include_endpoints)
    seconds = time.perf_counter() - started
    # of several prompts each has a sequence of its own, one after the other
    chosen = made.embeddings if position == ALL_STEPS else made.embeddings[slice(position, None, steps)]
    which = f"all {steps} steps" if position == ALL_STEPS else f"step {position} of 0 to {steps - 1}"
    lines = [f"{method}, {which}", *_account(operands, Combined(chosen, made.alignment))]
    if len(chosen) > 1 and not isinstance(start_embeds, list):
        lines.append(f"spread over the clip, which needs {FRAMES_PER_STEP * (len(chosen) - 1) + 1} frames or more")
    if store_in_db:
        settings = {"steps": steps, "method": method, "include_endpoints": include_endpoints}
        lines.append(record_operation(host, "interpolate", operands, made.embeddings, settings, seconds))
    return Shown((host.write_text(start_embeds, chosen),), "\n".join(lines))


def check_position(steps: int, position: int = ALL_STEPS) -> str | None:
    """A message where there is no such step."""
    if not MIN_STEPS <= steps <= MAX_STEPS:
        return f"steps={steps}; give {MIN_STEPS} to {MAX_STEPS}"
    if not ALL_STEPS <= position < steps:
        return f"position={position} of {steps} steps; give 0 to {steps - 1}, or {ALL_STEPS} for all"
    return None


def amplify_texts(
    host: Host,
    main_embeds: Any,
    injection_embeds: Any,
    target_difference: float,
    amplification_mode: AmplifyMethod,
) -> Shown:
    """The injection at least so far from the main text; the main text as well where the mode moves both."""
    main, injection = match_prompts([host.read_text(main_embeds), host.read_text(injection_embeds)])
    if target_difference == 0:
        info = f"nothing to do for a difference of 0 %\n{_differences('as they are', injection, main)}"
        return Shown((injection_embeds, info, main_embeds), info)
    made = amplify(injection, main, amplification_mode, target_difference / 100)
    lines = [
        f"{amplification_mode} to {target_difference:g} %: {made.alignment}",
        _differences("before", injection, main),
        _differences("after", made.first, main),
    ]
    moved_main = main_embeds
    if amplification_mode == "push_apart":
        lines.append(_differences("after, to amplified_main", made.first, made.second))
        moved_main = host.write_text(main_embeds, made.second)
    lines.append(f"strength {', '.join(f'{strength:.3f}' for strength in made.strength.tolist())} of 1")
    info = "\n".join(lines)
    return Shown((host.write_text(injection_embeds, made.first), info, moved_main), info)


def _account(operands: Sequence[TextEmbeddings], made: Combined) -> list[str]:
    """How lengths were brought together, and the norms before and after."""
    before = "; ".join(_norms(operand) for operand in operands)
    return [str(made.alignment), f"norms {before} -> {_norms(made.embeddings)}"]


def _norms(embeddings: TextEmbeddings) -> str:
    return ", ".join(f"{norm:.4g}" for norm in prompt_norms(embeddings).tolist())


def _differences(when: str, first: TextEmbeddings, second: TextEmbeddings) -> str:
    measured = compare(first, second)
    relative, changed, diluted = (
        ", ".join(f"{share:.1%}" for share in shares.tolist())
        for shares in (measured.figures.relative_l2, measured.share_changed, measured.diluted_share_changed)
    )
    return (
        f"{when}: {relative} apart; {changed} of the values differ by more than {THRESHOLD} ({diluted} over 512 rows)"
    )


TRACKED = Widget(
    "store_in_db",
    False,
    "Keep what goes in, what comes out, the settings and the time in the embedding store.",
    optional=True,
)


def _weight(number: int) -> Widget:
    return Widget(
        f"weight_{number}",
        1.0,
        f"Factor on operand_{number}; base_embeds has 1.",
        low=-10,
        high=10,
        step=0.1,
        optional=True,
    )


def _operand(number: int) -> Socket:
    return Socket(f"operand_{number}", HOST_TEXT, "Combined with base_embeds.", optional=True)


DIFFERENCE = Node(
    id="WanVideoVectorDifference",
    name="Vector Difference",
    topic="Embeddings",
    description="Subtracts one prompt from another: what A says and B does not, such as a style.",
    inputs=(
        Socket("text_embeds_a", HOST_TEXT, "The prompt with the style or concept."),
        Socket("text_embeds_b", HOST_TEXT, "The same prompt without it."),
        Widget("normalize", False, "Bring the difference to an L2 norm of 1 over all its tokens before scaling."),
        Widget("scale", 1.0, "Factor on the difference; after normalizing it is the norm.", low=-10, high=10, step=0.1),
        TRACKED,
    ),
    outputs=(Output("difference_vector", HOST_TEXT, "A - B, to be added to another prompt by Vector Arithmetic."),),
    run=subtract_texts,
    help="""
The result is no prompt to sample from but something to add to one: link it to `operand_1` of Vector Arithmetic.

- Write A and B alike except for the style or concept. Tokens are subtracted position by position, so a word more at the
  beginning of one shifts all that follow.
- A shorter prompt is filled up with zeros; the node says so, and the norms before and after.
- Without `normalize` a weight of 0.3 to 1 in the addition is a good start. With it the difference has norm 1, whatever
  the prompts: set `scale` or the weight to a share of the norms that the node shows.
""",
)

ARITHMETIC = Node(
    id="WanVideoVectorArithmetic",
    name="Vector Arithmetic",
    topic="Embeddings",
    description="Adds, averages, multiplies or normalizes up to four prompts, each operand with its weight.",
    inputs=(
        Socket("base_embeds", HOST_TEXT, "The prompt to start from, with weight 1."),
        Widget("operation", "add", "What is done with the base and the operands.", options=tuple(OPERATIONS)),
        *(part for number in (1, 2, 3) for part in (_operand(number), _weight(number))),
        TRACKED,
    ),
    outputs=(Output("result_embeds", HOST_TEXT, "The combined prompt, for a sampler or for more arithmetic."),),
    run=combine_texts,
    help="""
- `add`: base + weight_1 x operand_1 + ...; for adding or taking away a difference.
- `weighted_sum`: the same divided by the sum of the weights' magnitudes (the base counts 1), so that the result is as
  long as a prompt; for mixing prompts.
- `multiply`: channel by channel. Tokens that not all operands have become zero, and the result is mostly no prompt that
  the model knows.
- `normalize`: the sum, brought to an L2 norm of 1 over all tokens; for more arithmetic, far too short to sample.

Operands of another length are filled up with zeros. The node shows this and the norms: a result several times as long
as the base is outside of what the model has learned. Start with weights of 0.3 to 1.
""",
)

INTERPOLATION = Node(
    id="WanVideoVectorInterpolation",
    name="Vector Interpolation",
    topic="Embeddings",
    description="Goes from one prompt to another in steps, and gives all of them or one.",
    inputs=(
        Socket("start_embeds", HOST_TEXT, "The prompt at the beginning."),
        Socket("end_embeds", HOST_TEXT, "The prompt at the end."),
        Widget("steps", 5, "How many prompts, evenly spaced.", low=MIN_STEPS, high=MAX_STEPS),
        Widget(
            "method",
            "linear",
            "Straight; on an arc that keeps the tokens' norms; or straight, slow at both ends.",
            options=tuple(CURVES),
        ),
        Widget("include_endpoints", True, "Whether the first and the last step are the two prompts themselves."),
        Widget(
            "position",
            ALL_STEPS,
            "Which step goes out, counted from 0; -1 gives all of them.",
            low=ALL_STEPS,
            high=MAX_STEPS - 1,
            optional=True,
        ),
        TRACKED,
    ),
    outputs=(Output("interpolated_sequence", HOST_TEXT, "The steps as prompts, in order, or the one at `position`."),),
    run=interpolate_texts,
    check=check_position,
    help="""
With `position` at 0 or above the output is one prompt, for any sampler: a mixture whose share grows with the position.

With -1 it is all steps, and what becomes of them depends on the host:

- WanVideoWrapper (where -1 is the default) gives each part of the clip its own step, in order, or each context window
  if there are any. Without windows the clip needs a latent frame per step, 4 x steps - 3 frames: 17 for 5 steps. If it
  has fewer, the sampler stops with "upper bound and lower bound inconsistent"; take fewer steps, or one position.
- ComfyUI's own sampler gives each clip of a batch its own step: set the latent's `batch_size` to `steps`, and let
  Latent Batch Seed Behavior (`fixed`) give all clips the same noise. A single clip is that of the first step.

`spherical` keeps tokens at full length on the way. `cubic` between two prompts is the straight line, walked slowly at
both ends. Without endpoints all steps lie between the two prompts.
""",
)

AMPLIFIER = Node(
    id="WanVideoEmbeddingAmplifier",
    name="Embedding Amplifier",
    topic="Embeddings",
    description="Moves the prompt to be injected away from the main one, until they differ by so many percent.",
    inputs=(
        Socket("main_embeds", HOST_TEXT, "The prompt that is sampled."),
        Socket("injection_embeds", HOST_TEXT, "The prompt to inject."),
        Widget(
            "target_difference",
            60.0,
            "Least difference in percent: 0 is the same, 141 at right angles, 200 the opposite.",
            low=0,
            high=200,
            step=1,
        ),
        Widget("amplification_mode", "push_apart", "How they are moved apart.", options=tuple(MOVES)),
    ),
    outputs=(
        Output("amplified_injection", HOST_TEXT, "The moved prompt, for injection_embeds of the Activation Editor."),
        Output("info", "STRING", "How far the prompts are apart before and after."),
        Output("amplified_main", HOST_TEXT, "The main prompt: moved too by push_apart, else as it came."),
    ),
    run=amplify_texts,
    help="""
Percent is the length of the difference by the length of the prompts, |a - b| / sqrt(|a| |b|), over all true tokens.
Prompts that are that different already stay as they are; every moved token keeps its norm. Two prompts of MicroWan
mostly differ by more than 100 %, so that the default of 60 changes only those that are almost the same.

- `push_apart` moves both prompts. The target holds between the outputs: link `amplified_main` to the sampler too.
- `maximize_diff` moves the injection alone, along the difference, up to 200 % at most.
- `orthogonalize` takes out of the injection what it shares with the main prompt, up to about 141 %.

`info` also has a figure that is often quoted, the share of values that differ by more than 0.01; it says more about
the scale of the numbers and, over 512 rows, about the length of the prompts than about their meaning. What a mode
cannot reach is an error that names the most it can (1 is 100 %). Prompts pushed far away mean less to the model: try
120 to 150.
""",
)


def _interpolations() -> tuple[Node, Node]:
    """Both hosts' nodes; ComfyUI's own makes one clip, so there a single step goes out at first."""
    wrapper, native = for_both_hosts(INTERPOLATION)
    inputs = tuple(replace(part, default=MIDDLE) if part.name == "position" else part for part in native.inputs)
    return wrapper, replace(native, inputs=inputs, run=partial(interpolate_texts, position=MIDDLE))


NODES: tuple[Node, ...] = (
    *for_both_hosts(DIFFERENCE),
    *for_both_hosts(ARITHMETIC),
    *_interpolations(),
    *for_both_hosts(AMPLIFIER),
)
