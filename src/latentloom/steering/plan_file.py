"""Plans as TOML files: what an operation is in words and numbers, with prompts in words and tensors in files.

    [[operations]]
    prompt = "A large blue square moves up on a white background."
    blocks = "late_blocks"
    strength = "0.2..1"

    [[operations]]
    vector = "bright.safetensors"
    window = [0.0, 0.5]

Every operation names exactly one payload. Site and method follow from it where they are left out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from latentloom.errors import ConfigError, LatentLoomError
from latentloom.runs import Config, load_config, to_toml
from latentloom.steering.blocks import block_strengths
from latentloom.steering.capture import load_activations
from latentloom.steering.control.files import load_control
from latentloom.steering.control.span import ablate_span
from latentloom.steering.control.vector import ControlVector
from latentloom.steering.plan import (
    ActivationsPayload,
    Method,
    Operation,
    Plan,
    PlanePayload,
    PromptPayload,
    RowsPayload,
    Side,
    Site,
)
from latentloom.storage import load_object
from latentloom.tensors import TextEmbeddings

PAYLOADS = ("prompt", "prompts", "embeddings", "vector", "span", "first", "activations")
_PATHS = ("embeddings", "vector", "first", "second", "activations")
_NUMBER = Annotated[float, Field(strict=True)]  # not true, not "1"

Encode = Callable[[list[str]], TextEmbeddings]


class OperationConfig(Config):
    """One operation of a plan file; see `Operation` for what site, method, side, window and tokens mean.

    Args:
        site: None is the vector's or activations' own, and the context for text.
        method: None is lerp for text and activations, add for a vector, rotate for two.
        blocks: see `parse_blocks`.
        strength: see `block_strengths`.
        prompt, prompts: texts for the model's encoder, one for all clips or one per clip; or
        embeddings: a file of text embeddings, with
        space: `text` as the encoder gives them, or `model` for rows that are past the model's text embedding; or
        vector: a control vector file; or
        span: control vector files, all of which together are ablated, such as one per value of an attribute; or
        first, second: two control vector files that span a plane; or
        activations: a file of block activations.
    """

    site: Site | None = None
    method: Method | None = None
    blocks: str = "all"
    strength: _NUMBER | str = 1.0
    side: Side = "cond"
    window: tuple[_NUMBER, _NUMBER] = (0.0, 1.0)
    tokens: Literal["text", "all"] | tuple[int, int] = "text"
    prompt: str | None = None
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    embeddings: Path | None = None
    space: Literal["text", "model"] | None = None
    vector: Path | None = None
    span: Annotated[tuple[Path, ...], Field(min_length=1)] | None = None
    first: Path | None = None
    second: Path | None = None
    activations: Path | None = None

    @model_validator(mode="after")
    def _names_one_payload(self) -> "OperationConfig":
        given = [name for name in PAYLOADS if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(given) or "none"
            raise ValueError(f"{named} given; an operation has one payload of {', '.join(PAYLOADS)} (with second)")
        if (self.first is None) != (self.second is None):
            raise ValueError("a plane needs two vectors; give first and second")
        if self.span is not None and self.method not in (None, "ablate"):
            raise ValueError("a span can only be ablated; leave method out")
        if self.space is not None and self.embeddings is None:
            raise ValueError("space is said of embeddings; give these, or drop it")
        return self


class PlanConfig(Config):
    """A plan file.

    Args:
        num_blocks: of the models that it is for; None for any that has the blocks that it names.
        operations: in the order in which those on one site of one block act.
    """

    num_blocks: Annotated[int, Field(ge=1)] | None = None
    operations: tuple[OperationConfig, ...] = ()

    def strengths(self, num_blocks: int) -> list[tuple[float, ...]]:
        """Per operation, one strength for each block of a model.

        Raises:
            ConfigError: no operation, a plan for another number of blocks, or blocks and strengths that this model or
                the method does not have.
        """
        if self.num_blocks not in (None, num_blocks):
            raise ConfigError(
                f"the plan is for a model of {self.num_blocks} blocks and this one has {num_blocks}; "
                "make the plan for this model"
            )
        if not self.operations:
            raise ConfigError("the plan has no operation; give at least one, as a table [[operations]]")
        found = []
        for place, each in enumerate(self.operations):
            with self.naming(place):
                found.append(block_strengths(each.blocks, num_blocks, each.strength))
        return found

    @contextmanager
    def naming(self, place: int) -> Iterator[None]:
        """Within this context, a mistake's line begins with the operation that it is in, if there are several."""
        try:
            yield
        except LatentLoomError as mistake:
            if len(self.operations) == 1:
                raise
            raise type(mistake)(f"operation {place + 1}: {mistake}") from mistake


def load_plan_config(path: Path | str) -> PlanConfig:
    """The plan of a TOML file, without what it refers to.

    Raises:
        FileError: no such file.
        ConfigError: no TOML, an unknown key (the nearest is named), or a value out of range.
    """
    return load_config(PlanConfig, path)


def build_plan(config: PlanConfig, num_blocks: int, encode: Encode, folder: Path | str = ".") -> Plan:
    """The plan that a plan file describes, with its prompts encoded and its files read.

    Args:
        config: the file's content.
        num_blocks: of the model.
        encode: turns prompts into what the model's text encoder says of them.
        folder: what paths are relative to: the plan file's.

    Raises:
        ConfigError: operations out of range, or for another model.
        FileError: a file that is missing, damaged or of another kind.
    """
    encoded: dict[tuple[str, ...], TextEmbeddings] = {}

    def text_of(prompts: tuple[str, ...]) -> TextEmbeddings:
        if prompts not in encoded:
            encoded[prompts] = encode(list(prompts))
        return encoded[prompts]

    operations: list[Operation] = []
    for place, strengths in enumerate(config.strengths(num_blocks)):
        with config.naming(place):
            operations += _operations(config.operations[place], strengths, text_of, Path(folder))
    return Plan(tuple(operations))


def resolve_paths(config: PlanConfig, folder: Path | str) -> PlanConfig:
    """The same plan with paths that hold from anywhere.

    Args:
        config: a plan.
        folder: what its paths are relative to.
    """
    operations = []
    for each in config.operations:
        paths = {name: getattr(each, name) for name in _PATHS}
        moved: dict[str, object] = {
            name: (Path(folder) / path).resolve() for name, path in paths.items() if path is not None
        }
        if each.span is not None:
            moved["span"] = tuple((Path(folder) / path).resolve() for path in each.span)
        operations.append(each.model_copy(update=moved))
    return config.model_copy(update={"operations": tuple(operations)})


def plan_to_toml(config: PlanConfig) -> str:
    """TOML text that `load_plan_config` reads back as the same plan; what was left at its default is left out."""
    return to_toml(plan_values(config))


def plan_values(config: PlanConfig) -> dict[str, object]:
    """The plan as values of a TOML table; what was left at its default is left out."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    for operation in values.get("operations", ()):
        # in TOML a bare `none` is nothing, and these words may be meant
        if operation.get("prompt") == "none":
            operation["prompts"] = [operation.pop("prompt")]
        operation.update({name: f"./{operation[name]}" for name in _PATHS if operation.get(name) == "none"})
    return values


def _operations(
    config: OperationConfig,
    strengths: tuple[float, ...],
    text_of: Callable[[tuple[str, ...]], TextEmbeddings],
    folder: Path,
) -> list[Operation]:
    """The operations that one table stands for: one, or one per window of a control vector."""
    if config.vector is not None:
        return _along_vector(config, strengths, folder / config.vector)
    if config.span is not None:
        return _without_span(config, strengths, [folder / path for path in config.span])
    if config.first is not None and config.second is not None:
        return _within_plane(config, strengths, folder / config.first, folder / config.second)
    if config.activations is not None:
        payload, site = _activations(folder / config.activations, strengths)
        _refuse_site(config, config.activations, site)
    else:
        payload, site = _text_payload(config, text_of, folder), config.site or "context"
    method = config.method or "lerp"
    return [Operation(site, method, strengths, payload, config.side, config.window, config.tokens)]


def _text_payload(
    config: OperationConfig, text_of: Callable[[tuple[str, ...]], TextEmbeddings], folder: Path
) -> PromptPayload | RowsPayload:
    if config.embeddings is None:
        return PromptPayload(text_of(config.prompts or (config.prompt or "",)))
    text = load_object(folder / config.embeddings, TextEmbeddings)
    return RowsPayload(text) if config.space == "model" else PromptPayload(text)


def _activations(path: Path, strengths: tuple[float, ...]) -> tuple[ActivationsPayload, Site]:
    activations = load_activations(path)
    missing = [block for block, strength in enumerate(strengths) if strength and block not in activations.values]
    if missing:
        held = ", ".join(map(str, activations.values))
        raise ConfigError(f"{path} has no activations of block {missing[0]}; it has blocks {held}: name only these")
    return ActivationsPayload(activations), activations.site


def _along_vector(config: OperationConfig, strengths: tuple[float, ...], path: Path) -> list[Operation]:
    control = load_control(path, len(strengths))
    _refuse_site(config, path, control.site)
    return _in_window(config, path, control, control.operations(1.0, config.method or "add", config.side, strengths))


def _without_span(config: OperationConfig, strengths: tuple[float, ...], paths: list[Path]) -> list[Operation]:
    controls = [load_control(path, len(strengths)) for path in paths]
    _refuse_site(config, paths[0], controls[0].site)
    return _in_window(config, paths[0], controls[0], ablate_span(controls, 1.0, config.side, strengths))


def _in_window(
    config: OperationConfig, path: Path, control: ControlVector, operations: Sequence[Operation]
) -> list[Operation]:
    """What of a control vector's operations lies in the operation's own window, on its tokens."""
    shared = dict(zip(control.windows, _windows(config, path, control), strict=True))
    return [
        replace(operation, window=window, tokens=config.tokens)
        for operation in operations
        if (window := shared[operation.window]) is not None
    ]


def _within_plane(
    config: OperationConfig, strengths: tuple[float, ...], first_path: Path, second_path: Path
) -> list[Operation]:
    first, second = (load_control(path, len(strengths)) for path in (first_path, second_path))
    shapes = {(one.site, one.windows, tuple(one.directions.shape)) for one in (first, second)}
    if len(shapes) > 1:
        raise ConfigError(f"{first_path} and {second_path} differ in site, windows or width; give two fitted alike")
    _refuse_site(config, first_path, first.site)
    operations = []
    for index, window in enumerate(_windows(config, first_path, first)):
        if window is None:
            continue
        pair = first.directions[index].clone(), second.directions[index].clone()
        # where a vector leaves a block alone there is no plane to turn in: the block stays as it is
        acts = (pair[0].any(dim=-1) & pair[1].any(dim=-1)).tolist()
        chosen = tuple(strength if acting else 0.0 for strength, acting in zip(strengths, acts, strict=True))
        for block in (block for block, strength in enumerate(chosen) if not strength):
            for axis, vectors in enumerate(pair):
                vectors[block] = torch.eye(2, vectors.shape[1])[axis]  # some plane, which nothing reads
        method = config.method or "rotate"
        operations.append(
            Operation(first.site, method, chosen, PlanePayload(*pair), config.side, window, config.tokens)
        )
    return operations


def _windows(config: OperationConfig, path: Path, control: ControlVector) -> list[tuple[float, float] | None]:
    """Per window of a control vector, the part of it that lies in the operation's own; None where none does."""
    low, high = config.window
    if not 0 <= low < high <= 1:
        raise ConfigError(f"window {config.window} of the schedule; give a start below the end, both from 0 to 1")
    shared = [(max(low, start), min(high, end)) for start, end in control.windows]
    found = [(start, end) if start < end else None for start, end in shared]
    if not any(found):
        raise ConfigError(
            f"window {config.window} holds nothing of {path}, whose windows are {list(control.windows)}; "
            "give one that reaches into these"
        )
    return found


def _refuse_site(config: OperationConfig, path: Path, site: Site) -> None:
    if config.site not in (None, site):
        raise ConfigError(f"{path} is of site {site} and the operation's is {config.site}; leave site out")
