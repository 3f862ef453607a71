"""Control vectors: loaded, added up, and applied to a model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from latentloom.comfy.edits import OPERATIONS, describe_operations
from latentloom.comfy.hosts import Host
from latentloom.comfy.injecting import ENDS, STARTS, after_earlier, check_injection
from latentloom.comfy.model_files import file_named, files_of, folder_hint, state_of_files
from latentloom.comfy.pattern_text import ranges
from latentloom.comfy.patterns import strengths_for
from latentloom.comfy.schema import HOST_MODEL, Node, Output, Shown, Socket, Widget, for_both_hosts
from latentloom.errors import ConfigError
from latentloom.steering import ControlVector, Operation, Plan, ablate_span, combine, load_control
from latentloom.steering.blocks import picture
from latentloom.steering.control.files import SUFFIXES
from latentloom.steering.plan import Method, Side

KIND = "control_vectors"
GROUP = "_*"
"""Ends the name of a group: all files of one folder whose names begin alike, such as colour_red and colour_blue."""
ABLATE = "ablate"
METHODS: tuple[Method, ...] = ("add", "add_keep_norm", ABLATE)

ControlVectors = tuple[ControlVector, ...]
"""What a CONTROL_VECTOR socket carries: one, or those of a group."""


def control_names() -> list[str]:
    """What can be loaded: files and groups of files."""
    files = list(files_of(KIND, SUFFIXES))
    return [*files, *_groups(files)]


def load_controls(name: str) -> Shown:
    """The control vector of a file, or those of a group."""
    names = _groups(list(files_of(KIND, SUFFIXES))).get(name, [name])
    controls = tuple(load_control(file_named(KIND, SUFFIXES, each)) for each in names)
    lines = [f"{each}: {_about(control)}" for each, control in zip(names, controls, strict=True)]
    return Shown((controls,), "\n".join(lines))


def control_files_state(name: str, **hidden: Any) -> Any:
    """Changes with the files."""
    return [name, state_of_files(KIND, SUFFIXES)]


def combine_controls(a: ControlVectors, b: ControlVectors, weight_a: float, weight_b: float) -> Shown:
    """The weighted sum of two control vectors."""
    control = combine([_only(a, "combine"), _only(b, "combine")], [weight_a, weight_b])
    return Shown(((control,),), _about(control))


def apply_control(
    host: Host,
    model: Any,
    control_vector: ControlVectors,
    strength: float,
    method: Method,
    blocks: str,
    side: Side,
    start_percent: float,
    end_percent: float,
    ablate: ControlVectors | None = None,
) -> Shown:
    """The model with the span of `ablate` taken out, then the vector applied; as it came where nothing acts."""
    sizes = host.sizes(model)
    for control in (*(ablate or ()), *control_vector):
        _check_fits(control, sizes.num_blocks, sizes.dim)
    shares = strengths_for(blocks, sizes.num_blocks, 1.0)
    taken_out = () if ablate is None else ablate_span(ablate, 1.0, side, shares)
    if method == ABLATE:
        applied = ablate_span(control_vector, strength, side, shares)
    else:
        applied = _only(control_vector, method).operations(strength, method, side, shares)
    operations = _during((*taken_out, *applied), (start_percent, end_percent))
    if not operations:
        return Shown((model,), "nothing acts: strength 0, or no block")
    what = f"control vector, {method} {strength:g}" + (f", after {len(ablate)} were taken out" if ablate else "")
    record = _record(what, operations, side, (start_percent, end_percent))
    edited = host.annotate(host.install(model, Plan(operations)), after_earlier(host, model, record))
    acting = [block for block, value in enumerate(record["strengths"]) if value]
    return Shown((edited,), f"{what}\n{record['blocks']}  blocks {ranges(acting)}")


def check_blocks(blocks: str, start_percent: float = 0.0, end_percent: float = 1.0) -> str | None:
    """A message where the blocks are none of any model, or the window is none."""
    return check_injection(blocks, start_percent, end_percent)


def _groups(files: Sequence[str]) -> dict[str, list[str]]:
    """Group -> its files, one per stem; those of two stems or more."""
    found: dict[str, dict[str, str]] = {}
    for name in sorted(files, key=lambda name: SUFFIXES.index(PurePosixPath(name).suffix.lower())):
        path = PurePosixPath(name)
        head, separator, _ = path.stem.rpartition("_")
        if head and separator:
            found.setdefault(str(path.with_name(head + GROUP)), {}).setdefault(path.stem, name)
    return {group: sorted(stems.values()) for group, stems in sorted(found.items()) if len(stems) > 1}


def _only(controls: ControlVectors, use: str) -> ControlVector:
    if len(controls) != 1:
        raise ConfigError(f"{use} takes one control vector and this is a group of {len(controls)}; choose one of them")
    return controls[0]


def _check_fits(control: ControlVector, num_blocks: int, dim: int) -> None:
    depth, width = control.directions.shape[1:]
    if (depth, width) != (num_blocks, dim):
        raise ConfigError(
            f"the control vector is for {depth} blocks of {width} channels and this model has {num_blocks} of {dim}; "
            "fit one for this model with `latentloom steer control fit`"
        )


def _during(operations: Sequence[Operation], window: tuple[float, float]) -> tuple[Operation, ...]:
    """The operations that act somewhere, each in what the window leaves of its own.

    Raises:
        ConfigError: a window that ends before it starts, or that leaves nothing of the vector's own.
    """
    start, end = window
    if not start < end:
        raise ConfigError(f"start_percent {start:g} is not below end_percent {end:g}; give a start below the end")
    acting = [operation for operation in operations if operation.blocks]
    narrowed = [(one, (max(start, one.window[0]), min(end, one.window[1]))) for one in acting]
    kept = tuple(replace(one, window=left) for one, left in narrowed if left[0] < left[1])
    if acting and not kept:
        windows = ", ".join(f"{one.window[0]:g} to {one.window[1]:g}" for one in acting)
        raise ConfigError(f"the control vector acts from {windows} of the schedule, not from {start:g} to {end:g}")
    return kept


def _record(what: str, operations: Sequence[Operation], side: str, window: tuple[float, float]) -> dict[str, Any]:
    strengths = [max(values, key=abs) for values in zip(*(one.strengths for one in operations), strict=True)]
    return {
        "strengths": strengths,
        "blocks": picture(strengths),
        "mode": what,
        "side": side,
        "window": list(window),
        OPERATIONS: describe_operations(operations),
    }


def _about(control: ControlVector) -> str:
    length = float(control.directions.norm(dim=-1).mean())
    windows = ", ".join(f"{start:.0%} to {end:.0%}" for start, end in control.windows)
    return (
        f"{control.site} of {control.num_blocks} blocks, {control.directions.shape[-1]} channels, of model "
        f"{control.model}, during {windows}, mean length {length:.3g}"
    )


LOADER = Node(
    id="LatentLoomControlVectorLoader",
    name="Control Vector Loader",
    topic="Steering",
    description="Loads a control vector, a direction that a model's blocks can be moved along, or a group of them.",
    inputs=(
        Widget(
            "name",
            "microwan/colour_red.safetensors",
            f"A file in {folder_hint(KIND)}, or one that ships for MicroWan; a name that ends in {GROUP} is a group.",
            options=control_names,
        ),
    ),
    outputs=(Output("control_vector", "CONTROL_VECTOR", "One control vector, or those of the group."),),
    run=load_controls,
    fingerprint=control_files_state,
    help=f"""
A control vector says, block by block, in which direction a concept lies. Those of `microwan/` were fitted on
pairs of sentences that differ in a colour word; make others with `latentloom steer control fit`, put the
`.safetensors` or `.gguf` (repeng's layout) into `{folder_hint(KIND)}`, and reload the page.

A name that ends in `{GROUP}` loads all files that begin so. A group can be taken out (link it to `ablate` of
Control Vector Apply, or choose the method ablate there), not added: the values of one attribute add up to
nearly nothing.
""",
)

COMBINE = Node(
    id="LatentLoomControlVectorCombine",
    name="Control Vector Combine",
    topic="Steering",
    description="Adds two control vectors of one model, each times a weight; weight 1 and -1 is their difference.",
    inputs=(
        Socket("a", "CONTROL_VECTOR", "The first control vector."),
        Socket("b", "CONTROL_VECTOR", "The second; of the same model, site and windows."),
        Widget("weight_a", 1.0, "What the first is multiplied by.", low=-10, high=10, step=0.1),
        Widget("weight_b", 1.0, "What the second is multiplied by.", low=-10, high=10, step=0.1),
    ),
    outputs=(Output("control_vector", "CONTROL_VECTOR", "Their weighted sum."),),
    run=combine_controls,
    help="""
A sum of two directions asks for both at once, a difference leads from one to the other: red with weight 1 and
blue with weight -1 moves away from blue, towards red.

Both must be fitted for the same model, at the same site and for the same windows of the schedule. Groups do not
combine: choose single vectors.
""",
)

APPLY = Node(
    id="WanVideoControlVectorApply",
    name="Control Vector Apply",
    topic="Steering",
    description="Moves what chosen blocks read along a control vector, or takes it out, for all or some steps.",
    inputs=(
        Socket("model", HOST_MODEL, "The model to steer; the output is a copy that is steered."),
        Socket("control_vector", "CONTROL_VECTOR", "What to add or to take out."),
        Widget(
            "strength",
            4.0,
            "What the vector is multiplied by, negative for the opposite; for ablate 0 to 2, where 1 takes it out.",
            low=-100,
            high=100,
            step=0.1,
        ),
        Widget(
            "method",
            "add",
            "add moves tokens; add_keep_norm moves them and keeps their length; ablate takes the direction out.",
            options=METHODS,
        ),
        Widget("blocks", "all", "A preset's name, a list such as 0-9,20, or one 0 or 1 per block."),
        Widget("side", "cond", "Which prediction of guidance is changed.", options=("cond", "uncond", "both")),
        Widget("start_percent", 0.0, STARTS, low=0, high=1, step=0.01),
        Widget("end_percent", 1.0, ENDS, low=0, high=1, step=0.01),
        Socket(
            "ablate",
            "CONTROL_VECTOR",
            "A control vector or a group that is taken out first, whatever the strength.",
            optional=True,
        ),
    ),
    outputs=(Output("model", HOST_MODEL, "The steered model, for the sampler."),),
    run=apply_control,
    check=check_blocks,
    help="""
Sets or removes one thing that the prompt says, such as a colour, and leaves the rest of the clip as it is.

A vector of one value pulls against the value that the prompt asks for. So to *set* an attribute, link the group
of all its values to `ablate`, and the wanted value to `control_vector`: the group is taken out, then the value
is added. To *remove* a concept, choose the method ablate with strength 1.

Vectors belong to one model: their blocks and channels must be those of the model. On MicroWan, strength 2 to 6
sets a colour; vectors fitted as mean differences begin to show at 1. Windows should reach the end of the
schedule: what happens only in the first steps is overwritten by the later ones.
""",
)

NODES: tuple[Node, ...] = (LOADER, COMBINE, *for_both_hosts(APPLY))
