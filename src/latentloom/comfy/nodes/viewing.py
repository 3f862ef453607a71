"""Looking: which edits a model carries, and what there is to inject."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from latentloom.comfy.differences import Apart, measure_apart
from latentloom.comfy.edits import Edit, read_edits, records_of
from latentloom.comfy.hosts import Host
from latentloom.comfy.hosts.host import CONFIG
from latentloom.comfy.installed import plan_of
from latentloom.comfy.nodes.activation import LOW_DIFFERENCE
from latentloom.comfy.patterns import strengths_for
from latentloom.comfy.pictures import figure_picture
from latentloom.comfy.schema import HOST_MODEL, HOST_TEXT, Node, Output, Shown, Socket, Widget, for_both_hosts
from latentloom.comfy.trial import run_trial
from latentloom.errors import ConfigError
from latentloom.steering import compare
from latentloom.steering.measure import THRESHOLD, Comparison
from latentloom.tensors import TextEmbeddings
from latentloom.wan.text_encoder import MAX_TOKENS

NO_TRIAL = "Switch trial_run on to run the model once and see which blocks the edits change."
NOTHING = "Nothing is installed on this model: sampling with it is plain."


def view_activations(
    host: Host, model: Any, show_visual: bool, block_activations: str = "", text_embeds: Any = None
) -> Shown:
    """What the model carries as text; on the node also as a map of blocks and schedule."""
    num_blocks = host.sizes(model).num_blocks
    edits = _edits_on(host, model)
    lines = [_headline(edits, num_blocks)]
    if text_embeds is not None and not edits and _record_in(text_embeds):
        lines.append("The prompt has a record of an edit that this model lacks: link the editor's model output.")
    if block_activations.strip():
        strengths = strengths_for(block_activations, num_blocks, 1.0)
        edits.append(Edit("block_activations", strengths, state="pattern"))
    for number, edit in enumerate(edits, 1):
        first, *rest = edit.describe()
        lines += ["", f"{number}. {first}", *(f"   {line}" for line in rest)]
    text = "\n".join(lines)
    return Shown((text,), text, _maps(edits) if show_visual else ())


@torch.no_grad()
def inspect_injection(
    host: Host,
    model: Any,
    text_embeds: Any,
    injection_embeds: Any,
    trial_run: bool = False,
    trial_seed: int = 0,
    trial_percent: float = 0.5,
) -> Shown:
    """How far two prompts are apart before and after the model's projection, and what is installed; and the plot."""
    from latentloom.comfy.plots import plot_differences  # matplotlib takes a while to import

    first, second = host.read_text(text_embeds)[0], host.read_text(injection_embeds)[0]
    if not len(first.tokens) and not len(second.tokens):
        raise ConfigError("both prompts are zeros, so there is nothing to compare; link two encoded prompts")
    raw = compare(first, second)
    places = [measure_apart("as encoded", first, second)]
    lines = [_verdict(raw), "", *_report("As the text encoder gives them", raw, places[0])]
    try:
        projected, pad = _projected(host, model, first, second)
    except ConfigError as error:
        lines += ["", f"After the model's text_embedding: not measured. {error}"]
    else:
        after = compare(*projected, pad)
        places.append(measure_apart("after text_embedding", *projected, pad))
        ratio = float(after.figures.relative_l2) / max(float(raw.figures.relative_l2), torch.finfo(torch.float32).tiny)
        lines += ["", *_report("After the model's text_embedding, as its blocks read them", after, places[1])]
        lines += [f"  the projection keeps {ratio:.0%} of the difference"]
    edits = _edits_on(host, model)
    lines += ["", _headline(edits, host.sizes(model).num_blocks)]
    for edit in edits:
        lines += [f"  {line}" for line in edit.describe()[:2]]
    trial = run_trial(host, model, text_embeds, trial_seed, trial_percent) if trial_run else None
    lines += ["", *(trial.describe() if trial is not None else [NO_TRIAL])]
    picture = figure_picture(plot_differences(places, trial))
    text = "\n".join(lines)
    return Shown((text, picture.unsqueeze(0)), text, (picture,))


def _edits_on(host: Host, model: Any) -> list[Edit]:
    return read_edits(records_of(host.notes(model)), plan_of(model))


def _headline(edits: list[Edit], num_blocks: int) -> str:
    active = sum(edit.state == "active" for edit in edits)
    stale = len(edits) - active
    if not edits:
        return NOTHING
    text = (
        f"{active} edit{'s' if active != 1 else ''} active on this model of {num_blocks} blocks." if active else NOTHING
    )
    return text + (f" {stale} only written down: its plan was removed." if stale else "")


def _record_in(text: Any) -> bool:
    options = [text] if isinstance(text, Mapping) else [options for _, options in text]
    return any(CONFIG in each for each in options)


def _maps(edits: list[Edit]) -> tuple[Float[Tensor, "H W 3"], ...]:
    from latentloom.comfy.plots import plot_edits

    return (figure_picture(plot_edits(edits)),) if edits else ()


def _projected(
    host: Host, model: Any, first: TextEmbeddings, second: TextEmbeddings
) -> tuple[tuple[TextEmbeddings, TextEmbeddings], Float[Tensor, "D"]]:
    """Both prompts and a row of padding as the blocks read them."""
    padding = TextEmbeddings.from_list([first.tokens.new_zeros(1, first.dim)])
    a, b, pad = (host.project(model, text) for text in (first, second, padding))
    return (a, b), pad.tokens[0]


def _verdict(raw: Comparison) -> str:
    difference = float(raw.figures.relative_l2)
    if difference == 0:
        return "The prompts are equal: injecting one into the other changes nothing."
    enough = difference >= LOW_DIFFERENCE
    advice = "enough for a visible effect" if enough else "an injection will hardly show; see the Embedding Amplifier"
    return f"The prompts differ by {difference:.0%} of their length: {advice} (below {LOW_DIFFERENCE:.0%} is little)."


def _report(title: str, compared: Comparison, apart: Apart) -> list[str]:
    figures, (here, there) = compared.figures, compared.lengths[0].tolist()
    channels = ", ".join(f"{channel} ({apart.per_channel[channel]:.3g})" for channel in apart.top_channels)
    return [
        f"{title}: {here} and {there} tokens of {len(apart.per_channel)} channels",
        f"  relative L2 {float(figures.relative_l2):.3f}, ratio of norms {float(figures.norm_ratio):.2f}",
        f"  cosine of tokens: mean {float(figures.cosine_mean):.3f}, least {float(figures.cosine_min):.3f}; "
        f"order-free {float(figures.best_match):.3f}",
        f"  values that differ by more than {THRESHOLD}: {float(compared.share_changed):.1%}",
        f"  the same over {MAX_TOKENS} rows with padding, which is equal in any two prompts: "
        f"{float(compared.diluted_share_changed):.1%} (relative L2 {float(compared.diluted_relative_l2):.3f})",
        f"  channels that differ most: {channels}",
        f"  these ten make up {apart.top_share:.0%} of the difference"
        if len(apart.top_channels) < len(apart.per_channel)
        else "  these are all channels",
    ]


VIEWER = Node(
    id="WanVideoBlockActivationViewer",
    name="Block Activation Viewer",
    topic="Viewing",
    description="Shows which edits a model really carries: which blocks, how strongly, when and for which prediction.",
    inputs=(
        Socket("model", HOST_MODEL, "The model to look at, such as an editor's output."),
        Widget("show_visual", True, "Whether the node shows a map of blocks and schedule beside the text."),
        Widget(
            "block_activations",
            "",
            "A pattern to look at as well: one 0 or 1 per block, a preset's name, or a list.",
            optional=True,
            linked=True,
        ),
        Socket("text_embeds", HOST_TEXT, "A prompt that an editor wrote its record on.", optional=True),
    ),
    outputs=(Output("visualization", "STRING", "The same as text."),),
    run=view_activations,
    shows=True,
    help="""
Put it between an editor and the sampler to see what will happen. It changes nothing.

Each edit has a bar of its blocks (█ active, ░ not), the pattern they make, their strengths, the part of the
schedule in which they act and the side of guidance. In the map, blocks go up, the schedule to the right, and
colour is strength.

**active** means that the model carries the edit. **not active** means that an editor's record is there but the
edit is not, because another node removed it. Link a pattern to `block_activations` to look at it before you use
it.
""",
)

TESTER = Node(
    id="WanVideoInjectionTester",
    name="Injection Tester",
    topic="Viewing",
    description="Measures how far two prompts are apart, before and after the projection, and what is installed.",
    inputs=(
        Socket("model", HOST_MODEL, "The model that would be injected into; its weights are loaded to project with."),
        Socket("text_embeds", HOST_TEXT, "The prompt that is sampled."),
        Socket("injection_embeds", HOST_TEXT, "The prompt to inject."),
        Widget(
            "trial_run",
            False,
            "On: the model runs one step of a small clip with its edits and one without, to show what they change.",
            optional=True,
        ),
        Widget("trial_seed", 0, "Of the noise of the trial run.", low=0, high=2**31 - 1, optional=True),
        Widget(
            "trial_percent",
            0.5,
            "Share of the schedule that lies behind in the trial run; an edit acts only within its window.",
            low=0,
            high=1,
            step=0.01,
            optional=True,
        ),
    ),
    outputs=(
        Output("report", "STRING", "The figures as text."),
        Output("plot", "IMAGE", "The difference per token and per channel."),
    ),
    run=inspect_injection,
    shows=True,
    help="""
Tells whether there is anything to inject: prompts that say nearly the same cannot change a clip much.

Differences are measured on the tokens that the prompts have. The figure over 512 rows is shown too, since it is
often quoted as loss in the projection: padding is equal in any two prompts, so it mostly says how short they
are.

As a rule, 50 % (relative L2) or more shows in the clip. Below it, inject into more blocks, or use the Embedding
Amplifier. The last lines say what the model carries. With `trial_run`, the host's own sampler runs one step of
a 9-frame clip of 128 x 128, once with the edits and once without: the report then shows that the blocks were
called and how far each one's input moved. To see every call while a clip is sampled, set the editor's
`log_level` to verbose.
""",
)

NODES: tuple[Node, ...] = (*for_both_hosts(VIEWER), *for_both_hosts(TESTER))
