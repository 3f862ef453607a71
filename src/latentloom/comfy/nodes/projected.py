"""Injection past the text embedder: rows in the model's own width, moved away from the prompt's."""

from dataclasses import replace
from typing import Any, Literal

import torch

from latentloom.comfy.hosts import Host
from latentloom.comfy.injecting import (
    BLOCKS_TOOLTIP,
    LOG_LEVEL,
    STRENGTHS,
    WHEN,
    Target,
    check_injection,
    choose_target,
    inject,
    record_on_text,
)
from latentloom.comfy.log import LogLevel, NodeLog
from latentloom.comfy.patterns import BlockStrengths
from latentloom.comfy.schema import HOST_MODEL, HOST_TEXT, Node, Output, Socket, Widget, for_both_hosts
from latentloom.errors import ConfigError
from latentloom.steering import RowsPayload, boost_projection, compare, inject_direct
from latentloom.steering.embeddings.projected import LARGEST_BOOST
from latentloom.steering.plan import Side
from latentloom.tensors import TextEmbeddings


def boost(
    host: Host,
    model: Any,
    text_embeds: Any,
    injection_embeds: Any,
    boost_factor: float,
    preserve_norm: bool,
    block_activations: str = "all",
    injection_strength: float = 1.0,
    block_strengths: BlockStrengths | None = None,
    side: Side = "cond",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    log_level: LogLevel = "off",
    node_id: str | None = None,
) -> tuple[Any, Any, str]:
    """The model with the boosted rows injected, the prompt with its record, and how far apart the two prompts are."""
    log = NodeLog("Projection Booster", node_id, log_level)
    target = choose_target(
        host,
        model,
        log,
        f"projection boosted {boost_factor:g} times",
        block_activations,
        injection_strength,
        block_strengths,
        side,
        (start_percent, end_percent),
    )
    if target is None:
        return model, text_embeds, "no block is active, so nothing is injected"
    pair = _Projected(host, model, host.read_text(text_embeds), host.read_single(injection_embeds))
    rows = boost_projection(pair.base, pair.other, boost_factor, preserve_norm)
    return _inject_rows(host, model, text_embeds, pair, rows, target, log, log_level)


def inject_directly(
    host: Host,
    model: Any,
    text_embeds: Any,
    injection_prompt: str,
    difference_target: float,
    injection_mode: Literal["additive", "replace", "blend"],
    block_activations: str,
    injection_embeds: Any = None,
    injection_strength: float = 1.0,
    block_strengths: BlockStrengths | None = None,
    side: Side = "cond",
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    log_level: LogLevel = "off",
    encoder: Any = None,
    node_id: str | None = None,
) -> tuple[Any, Any]:
    """The model with rows injected that differ from the prompt's by the target, and the prompt with its record."""
    log = NodeLog("Direct Injector", node_id, log_level)
    target = choose_target(
        host,
        model,
        log,
        f"direct, {injection_mode} to {difference_target:g} %",
        block_activations,
        injection_strength,
        block_strengths,
        side,
        (start_percent, end_percent),
    )
    if target is None:
        return model, text_embeds
    injected = _injected_text(host, injection_prompt, injection_embeds, encoder)
    pair = _Projected(host, model, host.read_text(text_embeds), injected)
    rows = inject_direct(pair.base, pair.other, injection_mode, difference_target / 100)
    return _inject_rows(host, model, text_embeds, pair, rows, target, log, log_level)[:2]


class _Projected:
    """Two prompts as the model's blocks read them.

    Args:
        host, model: whose text embedder is used.
        text: what is sampled; of a text with another number of prompts than are injected, the first.
        injected: what is injected.
    """

    def __init__(self, host: Host, model: Any, text: TextEmbeddings, injected: TextEmbeddings) -> None:
        self.raw = (text if len(text) == len(injected) else text[[0]]), injected
        if text.dim != injected.dim:
            raise ConfigError(f"prompts of {text.dim} and {injected.dim} channels; encode both with one encoder")
        # where the prompt has ended, the model reads padding, and the difference from this counts
        longest = max(*self.raw[0].lengths.tolist(), *injected.lengths.tolist())
        padded = self.raw[0].padded(longest)
        whole = TextEmbeddings.from_padded(padded, lengths=torch.full((len(padded),), longest))
        self.base = host.project(model, whole)
        self.other = host.project(model, injected)
        self.pad = host.project(model, TextEmbeddings(text.tokens.new_zeros(1, text.dim), torch.tensor([1]))).tokens[0]

    def differences(self, rows: TextEmbeddings) -> dict[str, float]:
        """Relative L2 of the first pair: as encoded, projected, and after the rows were moved."""
        text, injected = (side[[0]] for side in self.raw)
        base = self.base[[0]].to_list()[0][: int(text.lengths[0])]
        projected = TextEmbeddings.from_list([base])
        return {
            "raw": float(compare(text, injected).figures.relative_l2),
            "projected": float(compare(projected, self.other[[0]], self.pad).figures.relative_l2),
            "injected": float(compare(projected, rows[[0]], self.pad).figures.relative_l2),
        }


def _inject_rows(
    host: Host,
    model: Any,
    text_embeds: Any,
    pair: _Projected,
    rows: TextEmbeddings,
    target: Target,
    log: NodeLog,
    log_level: LogLevel,
) -> tuple[Any, Any, str]:
    found = pair.differences(rows)
    info = (
        f"difference of the two prompts (relative L2): {found['raw']:.0%} as encoded, {found['projected']:.0%} after "
        f"text_embedding, {found['injected']:.0%} as injected"
    )
    log.verbose(info)
    operation = target.operation("context", "lerp", RowsPayload(rows))
    noted = {"difference": found["injected"], "differences": found}
    edited, record = inject(host, model, target, (operation,), log, log_level, noted)
    return edited, record_on_text(host, text_embeds, record), info


def _injected_text(host: Host, prompt: str, embeds: Any, encoder: Any) -> TextEmbeddings:
    if prompt.strip() and embeds is not None:
        raise ConfigError("both injection_prompt and injection_embeds say what to inject; empty one, or unlink it")
    if embeds is not None:
        return host.read_single(embeds)
    if encoder is None:
        raise ConfigError("there is nothing to inject; link injection_embeds, or an encoder for injection_prompt")
    return host.encode(encoder, prompt)


_MODEL = Socket("model", HOST_MODEL, "The model to steer; it stays as it is, and the output is a copy that is steered.")
_TEXT = Socket("text_embeds", HOST_TEXT, "The prompt that is sampled.")
_OUTPUTS = (
    Output("model", HOST_MODEL, "The steered model, for the sampler."),
    Output("text_embeds", HOST_TEXT, "The prompt that is sampled, with a record of the injection."),
)
_STRENGTH = Widget(
    "injection_strength",
    1.0,
    "Share of the injected rows in a chosen block.",
    low=0,
    high=1,
    step=0.01,
    optional=True,
)
_REST = (_STRENGTH, STRENGTHS, *WHEN, replace(LOG_LEVEL, optional=True))

BOOSTER = Node(
    id="WanVideoProjectionBooster",
    name="Projection Booster",
    topic="Steering",
    description="Injects another prompt past the text embedder, its difference from the sampled prompt made larger.",
    inputs=(
        _MODEL,
        _TEXT,
        Socket("injection_embeds", HOST_TEXT, "The prompt to inject."),
        Widget(
            "boost_factor",
            10.0,
            "How many times the difference; 1 injects the prompt as it is.",
            low=1,
            high=LARGEST_BOOST,
            step=0.5,
        ),
        Widget("preserve_norm", True, "Bring every row back to the length that it had before the boost."),
        Widget("block_activations", "all", BLOCKS_TOOLTIP, optional=True),
        *_REST,
    ),
    outputs=(*_OUTPUTS, Output("info", "STRING", "How far apart the prompts are: encoded, projected and injected.")),
    run=boost,
    check=check_injection,
    help="""\
Takes both prompts through the model's own `text_embedding`, multiplies what tells the second from the first, and lets
the chosen blocks read the result.

Use it when two prompts are close and their injection hardly shows. `info` says how far apart they are as encoded, after
the embedder and as injected; if the middle figure is high already, the Activation Editor does the same with less.

- `boost_factor`: 1 is the prompt itself. Try 2 to 5 first: far beyond the model reads rows that no prompt makes, and
  the clip loses detail before it follows further.
- `preserve_norm`: leave it on. Off, long rows push everything else out of the attention.
- In WanVideoWrapper the weights are read from where they rest; those of a quantised GGUF cannot be.
""",
)

DIRECT = Node(
    id="WanVideoDirectInjector",
    name="Direct Injector",
    topic="Steering",
    description="Injects another prompt past the text embedder, at exactly the difference that is asked for.",
    inputs=(
        _MODEL,
        _TEXT,
        Widget(
            "injection_prompt",
            "",
            "The prompt to inject, if an encoder is linked and injection_embeds is not.",
            multiline=True,
        ),
        Widget(
            "difference_target",
            50.0,
            "Relative L2 of the sampled and the injected rows, in percent.",
            low=1,
            high=200,
            step=1,
        ),
        Widget(
            "injection_mode",
            "blend",
            "additive goes straight on and grows; replace keeps the rows' lengths; blend goes from one to the other.",
            options=("additive", "replace", "blend"),
        ),
        Widget("block_activations", "all", BLOCKS_TOOLTIP),
        Socket("injection_embeds", HOST_TEXT, "The prompt to inject, in the place of injection_prompt.", optional=True),
        *_REST,
    ),
    outputs=_OUTPUTS,
    run=inject_directly,
    check=check_injection,
    help="""\
Moves the prompt's rows, past the model's `text_embedding`, towards the injected prompt until they differ by exactly
`difference_target`, and lets the chosen blocks read them.

- `blend` stops at the injected prompt, so it cannot differ more than that does; the message says how much it can.
- `replace` keeps the lengths of the injected rows and turns away further. `additive` reaches any difference, but long
  rows drown what else is said.
- Two different prompts differ by 100 % and more. 30 to 60 % mixes them, above 100 % the first one is hardly heard.
- Give either `injection_embeds` or, with an encoder linked, `injection_prompt`; an empty prompt is a prompt too.
""",
)


def _with_encoder(node: Node) -> Node:
    """The node of a host with a socket for the host's own text encoder."""
    kind = "CLIP" if node.host == "native" else "WANTEXTENCODER"
    socket = Socket("encoder", kind, "Encodes injection_prompt; not needed without.", optional=True)
    return replace(node, inputs=(*node.inputs, socket))


NODES: tuple[Node, ...] = (*for_both_hosts(BOOSTER), *map(_with_encoder, for_both_hosts(DIRECT)))
