"""Injection of what blocks held: one step of a prompt is recorded, and its difference from another's added in a run."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from latentloom.comfy.hosts import Host
from latentloom.comfy.hosts.host import NoisedClip
from latentloom.comfy.injecting import (
    BLOCKS_TOOLTIP,
    LOG_LEVEL,
    STRENGTHS,
    WHEN,
    check_injection,
    choose_target,
    inject,
)
from latentloom.comfy.log import LogLevel, NodeLog
from latentloom.comfy.patterns import MOST_BLOCKS, BlockStrengths
from latentloom.comfy.schema import HOST_MODEL, HOST_TEXT, Node, Output, Socket, Widget, for_both_hosts
from latentloom.errors import ConfigError
from latentloom.steering import ActivationsPayload, BlockActivations
from latentloom.steering.plan import Side
from latentloom.tensors import TextEmbeddings

KEPT_PER_MODEL = 2
"""Recordings that are kept for a model: two prompts are compared, and each can take gigabytes."""
LOW_DIFFERENCE = 0.02
"""Of two recordings, relative to the first, below which the model hardly tells the prompts apart."""

_recorded: WeakKeyDictionary[Any, OrderedDict[str, BlockActivations]] = WeakKeyDictionary()
# ComfyUI runs a node again whenever anything before it changed, also back to what it was; a run of a large model is
# worth keeping for that. A patcher is never changed by us, and every node that changes one makes another.


def encode_latent(
    host: Host,
    model: Any,
    text_embeds: Any,
    capture_after_blocks: int,
    use_cache: bool,
    clip_seed: int = 0,
    percent: float = 0.0,
    width: int = 832,
    height: int = 480,
    num_frames: int = 81,
    shift: float = 5.0,
    samples: Mapping[str, Any] | None = None,
    image_embeds: Mapping[str, Any] | None = None,
) -> tuple[BlockActivations, str]:
    """What the blocks up to the last one asked for are given for the prompt, in one step, and what was recorded."""
    clip = NoisedClip(clip_seed, percent, num_frames, height, width, samples, shift, image_embeds)
    text, beside = host.read_text(text_embeds), host.beside_prompts(text_embeds)
    key = _digest(clip, beside, text, capture_after_blocks)
    kept = _recorded.get(model, OrderedDict())
    found = kept.get(key) if use_cache else None
    if found is None:
        captured = host.capture(model, text_embeds, clip, capture_after_blocks)
        record = {**captured.record, "lengths": text.lengths.tolist(), "clip": _digest(clip, beside)}
        found = replace(captured, record=record)
    if use_cache:
        kept[key] = found
        kept.move_to_end(key)
        while len(kept) > KEPT_PER_MODEL:
            kept.popitem(last=False)
        _recorded[model] = kept
    return found, _describe(found)


def inject_latent(
    host: Host,
    model: Any,
    main_latent: BlockActivations,
    injection_latent: BlockActivations,
    injection_strength: float,
    block_activations: str,
    method: str = "difference",
    block_strengths: BlockStrengths | None = None,
    side: Side = "cond",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    log_level: LogLevel = "off",
    node_id: str | None = None,
) -> tuple[Any]:
    """The model with the recorded difference added to what its blocks are given, or blended with the recording."""
    log = NodeLog("Latent Injector", node_id, log_level)
    window = (start_percent, end_percent)
    mode = f"recorded {method}"
    target = choose_target(host, model, log, mode, block_activations, injection_strength, block_strengths, side, window)
    if target is None:
        return (model,)
    _check_pair(main_latent, injection_latent)
    chosen = [block for block, strength in enumerate(target.strengths) if strength]
    missing = [block for block in chosen if block not in injection_latent.values or block not in main_latent.values]
    if missing:
        raise ConfigError(
            f"block {missing[0]} was not recorded, blocks {_span(injection_latent)} were; "
            f"set capture_after_blocks of both Latent Encoders to {missing[-1]}, or choose other blocks"
        )
    moved = {block: injection_latent.values[block].float() - main_latent.values[block].float() for block in chosen}
    differences = {block: _relative(moved[block], main_latent.values[block]) for block in chosen}
    for block, difference in differences.items():
        log.verbose(f"block {block}: the recordings differ by {difference:.1%}")
    if max(differences.values()) < LOW_DIFFERENCE:
        log.warn(
            f"the recordings differ by {max(differences.values()):.1%} at most, so the injection will hardly show; "
            "choose later blocks or prompts that differ more"
        )
    if method == "difference":
        values = {block: rows.to(injection_latent.values[block].dtype) for block, rows in moved.items()}
        payload = ActivationsPayload(replace(injection_latent, values=values))
        operation = target.operation("hidden_states", "add", payload)
    else:
        operation = target.operation("hidden_states", "lerp", ActivationsPayload(injection_latent))
    noted = {"differences": {str(block): difference for block, difference in differences.items()}}
    return (inject(host, model, target, (operation,), log, log_level, noted)[0],)


def _check_pair(main: BlockActivations, injected: BlockActivations) -> None:
    shapes = [tuple(next(iter(one.values.values())).shape) for one in (main, injected)]
    if shapes[0] != shapes[1]:
        raise ConfigError(f"recordings of {shapes[0]} and {shapes[1]} tokens; give both Latent Encoders one clip size")
    if main.record.get("clip") != injected.record.get("clip"):
        raise ConfigError(
            "the recordings come from different clips, so their difference is noise; "
            "give both Latent Encoders one seed, percent and clip"
        )


def _relative(difference: Tensor, base: Tensor) -> float:
    length = float(base.float().norm())
    return float(difference.norm()) / length if length else 0.0


def _digest(clip: NoisedClip, beside: Any, text: TextEmbeddings | None = None, num_blocks: int | None = None) -> str:
    """The same for the same contents: the clip, what is said beside the prompts, and with `text` the prompts."""
    settings = (clip.seed, clip.percent, clip.num_frames, clip.height, clip.width, clip.shift, num_blocks)
    digest = sha256(repr(settings).encode())
    for given in (
        clip.samples,
        clip.image_embeds,
        beside,
        None if text is None else {"": text.tokens, "n": text.lengths},
    ):
        _add_contents(digest, given)
    return digest.hexdigest()


def _add_contents(digest: Any, given: Any) -> None:
    if isinstance(given, Tensor):
        digest.update(repr((given.dtype, tuple(given.shape))).encode())
        digest.update(given.detach().cpu().float().contiguous().numpy().tobytes())
    elif isinstance(given, Mapping):
        for name, part in given.items():
            digest.update(repr(name).encode())
            _add_contents(digest, part)
    elif isinstance(given, list | tuple):
        for part in given:
            _add_contents(digest, part)
    else:
        digest.update(repr(given).encode())


def _describe(recorded: BlockActivations) -> str:
    tokens, channels = next(iter(recorded.values.values())).shape[1:]
    size = sum(rows.numel() * rows.element_size() for rows in recorded.values.values()) / 2**20
    return (
        f"blocks {_span(recorded)}: {tokens} tokens of {channels} channels, {size:.1f} MB; "
        f"timestep {recorded.timestep:.0f}, seed {recorded.record['seed']}"
    )


def _span(recorded: BlockActivations) -> str:
    return f"{min(recorded.values)} to {max(recorded.values)}"


ENCODER = Node(
    id="WanVideoLatentEncoder",
    name="Latent Encoder",
    topic="Steering",
    description="Runs one step of a prompt and records what the first blocks of the transformer are given.",
    inputs=(
        Socket("model", HOST_MODEL, "The model; it is loaded and run once by the host's own sampler."),
        Socket("text_embeds", HOST_TEXT, "The prompt to record."),
        Widget(
            "capture_after_blocks",
            3,
            "How many blocks the last recording has passed; every block up to this one is recorded.",
            low=1,
            high=MOST_BLOCKS - 1,
        ),
        Widget("use_cache", True, "Take the recording of an equal run before, if this model still has it."),
        Widget(
            "clip_seed",  # a widget called seed would draw another number after each run
            0,
            "Of the noise that the step starts from; the same in both encoders.",
            low=0,
            high=2**64 - 1,
            optional=True,
        ),
        Widget(
            "percent",
            0.0,
            "Share of the schedule at which the step is: 0 is noise alone, and samples have no effect.",
            low=0,
            high=0.95,
            step=0.01,
            optional=True,
        ),
        Widget(
            "width", 832, "Of the clip in pixels, if nothing linked says it.", low=16, high=8192, step=16, optional=True
        ),
        Widget(
            "height",
            480,
            "Of the clip in pixels, if nothing linked says it.",
            low=16,
            high=8192,
            step=16,
            optional=True,
        ),
        Widget("num_frames", 81, "Of the clip, if nothing linked says it.", low=1, high=10000, step=4, optional=True),
        Socket("samples", "LATENT", "A clip to noise; native: an empty latent gives the size.", optional=True),
    ),
    outputs=(
        Output("latent_embeds", "LATENT_EMBEDS", "The recording, for the Latent Injector."),
        Output("info", "STRING", "What was recorded."),
    ),
    run=encode_latent,
    help="""\
Gives noise of the chosen seed and one prompt to the model, for one step of the host's own sampler, and keeps what
enters block 0 to block `capture_after_blocks`. Two of these, with the injected and with the sampled prompt, go into the
Latent Injector.

- Both encoders need the same seed, percent and clip: then all that differs is what the prompt did.
- The clip's size has to be that of the run. Native: link the empty latent that goes to the sampler. WanVideoWrapper:
  link the image embeds that go to the sampler; an image-to-video model needs them.
- The recording takes memory: about 0.3 GB per block for 81 frames of 832 x 480 on a 14B model.
- `percent` above 0 looks at a later step; link a finished clip as `samples`, which is noised to that step.
""",
)

INJECTOR = Node(
    id="WanVideoLatentInjector",
    name="Latent Injector",
    topic="Steering",
    description="Adds what another prompt did to the model's first blocks to what these blocks are given in a run.",
    inputs=(
        Socket("model", HOST_MODEL, "The model to steer; it stays as it is, and the output is a copy that is steered."),
        Socket("main_latent", "LATENT_EMBEDS", "The recording of the prompt that is sampled."),
        Socket("injection_latent", "LATENT_EMBEDS", "The recording of the prompt to inject."),
        Widget(
            "injection_strength",
            0.5,
            "How much of the difference is added, or the recording's share in a blend.",
            low=0,
            high=1,
            step=0.01,
        ),
        Widget("block_activations", "0" * MOST_BLOCKS, BLOCKS_TOOLTIP),
        Widget(
            "method",
            "difference",
            "difference adds what tells the recordings apart; blend moves towards the injected recording.",
            options=("difference", "blend"),
            optional=True,
        ),
        STRENGTHS,
        *WHEN,
        replace(LOG_LEVEL, optional=True),
    ),
    outputs=(Output("model", HOST_MODEL, "The steered model, for the sampler."),),
    run=inject_latent,
    check=check_injection,
    help="""\
Takes two recordings of the Latent Encoder and lets the chosen blocks of every step see the injected one.

- `difference` adds injected minus main, token by token: the noise, which both share, cancels out. It sets a trait and
  keeps the rest: on MicroWan blocks 1-3 at 0.5 change the motion as asked in 95 % of clips and keep 95 % of the rest.
- `blend` moves the blocks' input towards the recording itself. It is for prompts that differ in nearly all, where
  adding breaks the clip, and needs all blocks but the first, at 1: 67 % of traits follow.
- Strength adds up from block to block: start with few blocks at 0.5, then add later blocks rather than strength.
- Block 0 is given no text yet, so with `difference` it changes nothing. Only recorded blocks can be chosen.
""",
)


def _for_wrapper(node: Node) -> Node:
    if node.host != "wrapper":
        return node
    return replace(
        node,
        inputs=(
            *node.inputs,
            Widget(
                "shift",
                5.0,
                "Of the sampler's schedule, which says how noisy percent is.",
                low=0.01,
                high=1000,
                step=0.01,
                optional=True,
            ),
            Socket("image_embeds", "WANVIDIMAGE_EMBEDS", "As for the sampler; gives the clip's size.", optional=True),
        ),
    )


NODES: tuple[Node, ...] = (*map(_for_wrapper, for_both_hosts(ENCODER)), *for_both_hosts(INJECTOR))
