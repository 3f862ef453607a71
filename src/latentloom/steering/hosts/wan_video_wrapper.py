"""Binds a plan to the model of ComfyUI-WanVideoWrapper, by hooks that sleep until a call's options carry a plan.

That host calls its transformer from one long function, and `transformer_options` go from the call to every block. So
all that a call needs travels in its arguments: the hooks hold nothing, and nothing has to be cleaned up when a run is
interrupted. The sampler copies these options from the model's, so a clone's plan acts in the clone's runs alone.

What another prompt's blocks hold is recorded by a second run within the call, before it: the same arguments with the
other prompt, and options that carry a `Recording` in the plan's place.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentloom.errors import ConfigError
from latentloom.steering.hosts.compiled import forget_compiled
from latentloom.steering.hosts.official import (
    CallEdits,
    CarriedPlan,
    Listener,
    OfficialCall,
    Recording,
    check_fits,
    edited,
    true_lengths,
)
from latentloom.steering.inject import BlockEdits, TokenEdit
from latentloom.steering.plan import Operation, Plan
from latentloom.tensors import TextEmbeddings

PLAN = "latentloom_plan"
"""Where `transformer_options` carry the plan, as a `CarriedPlan`."""
RECORDING = "latentloom_recording"
"""Where they carry what is to be recorded, as a `Recording`."""

_EDITS = "latentloom_edits"
"""Where this call's `transformer_options` carry its edits, and a block's context those of what attention returns."""
_CACHES = ("enable_teacache", "enable_magcache", "enable_easycache")
"""Of the model: whether calls are skipped for what earlier ones gave. Nothing may be skipped or kept when recording."""


@runtime_checkable
class Patcher(Protocol):
    """What is used of ComfyUI's ModelPatcher; a clone has options of its own and shares the model."""

    model: Any
    model_options: dict[str, Any]

    def clone(self) -> Patcher:
        """Another patcher of the same model."""
        ...


def install(patcher: Patcher, plan: Plan, listen: Listener | None = None) -> Patcher:
    """A clone whose runs are changed by the plan, after those that it has; the patcher stays as it is.

    The model gets its sleeping hooks, once; its weights may still be on the meta device.

    Args:
        patcher: of ComfyUI-WanVideoWrapper's model.
        plan: for a model of its depth and width.
        listen: told of each call, of all plans that the clone has.

    Raises:
        ConfigError: the plan does not fit the model, or the model's version hands no options to its blocks.
    """
    clone = patcher.clone()
    model = clone.model.diffusion_model
    check_fits(plan, model)
    options = clone.model_options.get("transformer_options", {})
    before = options.get(PLAN)
    listeners = () if listen is None else (listen,)
    if before is not None:
        plan = Plan((*before.plan.operations, *plan.operations))
        listeners = (*before.listeners, *listeners)
    attach(model)
    carried = {**options, PLAN: CarriedPlan(plan, listeners)}
    clone.model_options = {**clone.model_options, "transformer_options": carried}
    return clone


def record(patcher: Patcher, recording: Recording) -> Patcher:
    """A clone whose runs fill the recording, edits of its own plans included; the patcher stays as it is.

    Raises:
        ConfigError: the model's version hands no options to its blocks.
    """
    clone = patcher.clone()
    attach(clone.model.diffusion_model)
    options = {**clone.model_options.get("transformer_options", {}), RECORDING: recording}
    clone.model_options = {**clone.model_options, "transformer_options": options}
    return clone


def attach(model: Any) -> None:
    """Give a transformer its sleeping hooks, if it has none: without a plan in a call's options they do nothing.

    Raises:
        ConfigError: the model's version hands no options to its blocks.
    """
    if _on_model in model._forward_pre_hooks.values():
        return
    blocks = [getattr(block, "_orig_mod", block) for block in model.blocks]
    for block in blocks:
        taken = inspect.signature(block.forward).parameters
        if "transformer_options" not in taken and all(one.kind is not one.VAR_KEYWORD for one in taken.values()):
            raise ConfigError(
                "this version of ComfyUI-WanVideoWrapper hands no transformer_options to its blocks; update it"
            )
    for index, block in enumerate(blocks):
        block.register_forward_pre_hook(_on_block(index), with_kwargs=True)
        block.cross_attn.register_forward_hook(_on_attention, with_kwargs=True)
    model.register_forward_pre_hook(_on_model, with_kwargs=True)
    forget_compiled(model)


def _on_model(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    options = kwargs.get("transformer_options") or {}
    carried = options.get(PLAN)
    if carried is None:
        return None
    edits = _edits_of(model, carried, args, kwargs)
    return args, {**kwargs, "transformer_options": {**options, _EDITS: edits or None}}


def _on_block(index: int) -> Callable[[nn.Module, tuple, dict[str, Any]], tuple[tuple, dict[str, Any]] | None]:
    def hook(block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        options = kwargs.get("transformer_options") or {}
        edits, recording = options.get(_EDITS), options.get(RECORDING)
        if edits is None and recording is None:
            return None
        return _given_to_block(edits, recording, index, args, kwargs)

    return hook


def _on_attention(attention: nn.Module, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
    context = args[1] if len(args) > 1 else kwargs.get("context")
    edits: tuple[TokenEdit, ...] | None = getattr(context, _EDITS, None)
    return None if edits is None else edited(edits, output)


@torch.compiler.disable(recursive=True)
def _edits_of(model: Any, carried: CarriedPlan, args: tuple, kwargs: dict[str, Any]) -> CallEdits:
    """This call's edits, from the arguments of the call: clips and prompts come as lists of tensors without padding."""
    check_fits(carried.plan, model)
    prompts, device = kwargs["context"], kwargs["x"][0].device
    conditional = (not kwargs.get("is_uncond", False),) * len(prompts)
    if len(kwargs["x"]) > 1:  # guidance in one batch
        half = len(prompts) // 2
        conditional = (True,) * half + (False,) * (len(prompts) - half)
    recording = kwargs["transformer_options"].get(RECORDING)
    told = None if recording is None else recording.progress
    call = OfficialCall(
        conditional=conditional,
        clips=(0,) * len(prompts),  # this host samples one clip at a time
        progress=float(kwargs.get("current_step_percentage", 0.0)) if told is None else told,
        lengths=torch.cat([true_lengths(prompt.unsqueeze(0)) for prompt in prompts]).to(device),
        num_text_rows=model.text_len,
        text_dim=model.text_dim,
        project=lambda rows: _projected(model, rows).to(device),
        record=lambda operation, text: _recorded(model, operation, text, args, kwargs),
    )
    edits = CallEdits(carried.plan, call)
    edits.tell(carried.listeners)
    return edits


def _recorded(
    model: Any, operation: Operation, text: TextEmbeddings, args: tuple, kwargs: dict[str, Any]
) -> dict[int, Tensor]:
    """What the blocks hold at the operation's site in another run of the model with these prompts."""
    recording = Recording(operation.blocks, operation.site)
    options = {**kwargs["transformer_options"], PLAN: None, RECORDING: recording}
    prompts = [rows.to(kwargs["context"][0]) for rows in text.to_list()]
    # clips and image conditions are copied: some variants of the model write to them
    copied = {name: [clip.clone() for clip in kwargs[name]] for name in ("x", "y") if kwargs.get(name) is not None}
    with _without_caches(model):
        model(*args, **{**kwargs, **copied, "context": prompts, "transformer_options": options})
    return recording.values


@contextmanager
def _without_caches(model: Any) -> Iterator[None]:
    before = {name: getattr(model, name) for name in _CACHES if getattr(model, name, False)}
    try:
        for name in before:
            setattr(model, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


@torch.compiler.disable(recursive=True)
def _given_to_block(
    edits: CallEdits | None, recording: Recording | None, index: int, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    tokens, context = args[0], kwargs["context"]
    block = BlockEdits() if edits is None else edits.block(index)
    if block.hidden_states:
        # a copy: the block works in place, and a payload must stay what it is
        tokens = edited(block.hidden_states, tokens).clone()
    if edits is not None and context is not None:
        context = edits.context(block.context, context)
    on_output = block.attention_output
    if recording is not None and recording.site == "hidden_states":
        recording.keep(index, tokens)
    elif recording is not None and index in recording.blocks:
        on_output = (*on_output, partial(_kept, recording, index))
    if on_output:
        images = kwargs.get("clip_embed")
        if context is None or max(len(context), 0 if images is None else len(images)) > len(tokens):
            raise ConfigError(
                "attention_output takes one prompt and one image at a time here; remove the others from this run"
            )
        context = context.view_as(context)  # a tensor of this block alone, to be marked
        setattr(context, _EDITS, on_output)
    return (tokens, *args[1:]), {**kwargs, "context": context}


def _kept(recording: Recording, index: int, output: Tensor) -> Tensor:
    recording.keep(index, output)
    return output


def _projected(model: Any, rows: Tensor) -> Tensor:
    """Rows after the model's own `text_embedding`, where its weights rest, in the dtype that the model uses there."""
    weight = model.text_embedding[0].weight
    is_plain = weight.dtype in (torch.float16, torch.bfloat16, torch.float32)
    return model.text_embedding(rows.to(weight.device, weight.dtype if is_plain else model.base_dtype))
