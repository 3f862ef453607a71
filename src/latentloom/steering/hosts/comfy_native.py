"""Binds a plan to ComfyUI's own Wan model: a wrapper around each call, which replaces blocks for this call alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

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
from latentloom.steering.plan import Operation, Plan
from latentloom.tensors import TextEmbeddings
from latentloom.wan.model_call import schedule_progress
from latentloom.wan.sampling import NUM_TRAIN_TIMESTEPS

KEY = "latentloom"
SHIFT = "latentloom_shift"
RECORDING = "latentloom_recording"

Change = Callable[[int, dict[str, Any]], dict[str, Any]]
"""(block, what it is given) -> what it is given instead; "img" is its video tokens and "txt" its context."""


@runtime_checkable
class Patcher(Protocol):
    """What is used of ComfyUI's ModelPatcher; a clone has options of its own and shares the model."""

    model: Any

    def clone(self) -> Patcher:
        """Another patcher of the same model."""
        ...

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable[..., Any]) -> None:
        """Call the wrapper around what the type names."""
        ...


def install(patcher: Patcher, plan: Plan, listen: Listener | None = None) -> Patcher:
    """A clone whose runs are changed by the plan, on top of what the patcher has; the patcher stays as it is.

    The model is not touched, and its weights may still be on the meta device.

    Args:
        patcher: of ComfyUI's own Wan.
        plan: for a model of its depth and width.
        listen: told of each call.

    Raises:
        ConfigError: the plan does not fit the model.
    """
    clone = patcher.clone()
    check_fits(plan, clone.model.diffusion_model)
    clone.add_wrapper_with_key("diffusion_model", KEY, NativeWrapper(plan, () if listen is None else (listen,)))
    clone.add_wrapper_with_key("apply_model", KEY, tell_shift)
    return clone


def record(patcher: Patcher, recording: Recording) -> Patcher:
    """A clone whose runs fill the recording, edits of its own plans included; the patcher stays as it is."""
    clone = patcher.clone()
    clone.add_wrapper_with_key("diffusion_model", KEY, NativeRecorder(recording))
    return clone


def tell_shift(
    executor: Any,
    x: Tensor,
    t: Tensor,
    c_concat: Tensor | None = None,
    c_crossattn: Tensor | None = None,
    control: Any = None,
    transformer_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Tensor:
    """The model's answer; `transformer_options` tells the wrappers within the shift that this run's sampler has.

    Only here it is known: nodes after the plan's may set another, and the transformer does not know its sampler.
    """
    shift = getattr(executor.class_obj.model_sampling, "shift", None)
    options = {**(transformer_options or {}), SHIFT: shift}
    return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)


class NativeWrapper(CarriedPlan):
    """A `DIFFUSION_MODEL` wrapper that carries out a plan, and holds nothing else.

    Args:
        plan: for models of one depth; a call of another is refused.
        listeners: told of each call.
    """

    @torch.compiler.disable(recursive=False)
    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The model's answer with the plan's edits, and what other nodes replaced in it still in place.

        Args:
            executor: calls the next wrapper or the model; its `class_obj` is the model.
            x: noised clips [B, C, T, H, W].
            timestep: [B], 0 to 1,000.
            context: rows of the text encoder, padded with zeros [B, K, T].
            clip_fea, time_dim_concat, kwargs: handed on.
            transformer_options: `cond_or_uncond` says what the batch's equal parts are: 0 is cond, 1 is uncond.

        Raises:
            ConfigError: the plan does not fit the model.
        """
        model, options = executor.class_obj, dict(transformer_options or {})
        check_fits(self.plan, model)

        def run(context: Tensor, options: dict[str, Any]) -> Tensor:
            return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

        if options.get(RECORDING):  # by a plan around this one, which comes before it and knows nothing of its edits
            return run(context, options)
        edits = _edits_of(self, model, run, len(x), timestep, context, options)
        return _run_edited(model, edits, partial(run, context), options) if edits else run(context, options)


class NativeRecorder:
    """A `DIFFUSION_MODEL` wrapper that fills a recording; it comes after the plans, so it sees their edits.

    Args:
        recording: of hidden states, of the first clip of the positive side.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeRecorder:
        return self  # options are copied deeply for each run, and runs shall fill this recording

    @torch.compiler.disable(recursive=False)
    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The model's answer, as it is; see `NativeWrapper`."""
        options = dict(transformer_options or {})
        if not options.get(RECORDING):  # a plan's second run is no answer to anyone
            sides = options.get("cond_or_uncond") or [0]
            first = len(x) // len(sides) * sides.index(0) if 0 in sides else 0

            def keep(index: int, given: dict[str, Any]) -> dict[str, Any]:
                self._recording.keep(index, given["img"][first : first + 1])
                return given

            options = _replacing(options, self._recording.blocks, keep)
        return executor(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)


def progress_of(timestep: Tensor, options: Mapping[str, Any]) -> float:
    """The share of the schedule that lies behind, as ComfyUI's own percentages count it.

    The noise level alone says it where the shift is known: a run may be one of several that share a schedule, as with
    the two experts of Wan 2.2, and sees only its own part of it. Where it is not known, steps are counted.

    Args:
        timestep: of the call, 0 to 1,000.
        options: this call's `transformer_options`.
    """
    sigmas, schedule, shift = (options.get(name) for name in ("sigmas", "sample_sigmas", SHIFT))
    sigma = float(timestep.flatten()[0]) / NUM_TRAIN_TIMESTEPS if sigmas is None else float(sigmas.flatten()[0])
    if shift is None and schedule is not None and len(schedule) > 1:
        passed = int((schedule[:-1] > sigma * (1 + 1e-6)).sum())
        return passed / (len(schedule) - 1)
    # rounded, so that a step at exactly half the schedule is not before it by a float32's last digit
    return round(schedule_progress(sigma, shift or 1.0), 5)


@torch.compiler.disable(recursive=True)
def _edits_of(
    carried: CarriedPlan,
    model: Any,
    run: Callable[[Tensor, dict[str, Any]], Tensor],
    batch: int,
    timestep: Tensor,
    context: Tensor,
    options: dict[str, Any],
) -> CallEdits:
    def record(operation: Operation, text: TextEmbeddings) -> dict[int, Tensor]:
        return _recorded(model, operation, partial(run, text.padded(context.shape[1]).to(context)), options)

    sides = options.get("cond_or_uncond") or [0]
    per_side = batch // len(sides)
    call = OfficialCall(
        conditional=tuple(side == 0 for side in sides for _ in range(per_side)),
        clips=tuple(range(per_side)) * len(sides),
        progress=progress_of(timestep, options),
        lengths=true_lengths(context),
        num_text_rows=context.shape[1],
        text_dim=context.shape[2],
        project=lambda rows: model.text_embedding(rows.to(context)),
        record=record,
    )
    edits = CallEdits(carried.plan, call)
    edits.tell(carried.listeners)
    return edits


def _run_edited(model: Any, edits: CallEdits, run: Callable[[dict], Tensor], options: dict[str, Any]) -> Tensor:
    blocks = [edits.block(index) for index in range(len(model.blocks))]

    def change(index: int, given: dict[str, Any]) -> dict[str, Any]:
        tokens = edited(blocks[index].hidden_states, given["img"])
        return {**given, "img": tokens, "txt": edits.context(blocks[index].context, given["txt"])}

    def change_output(index: int, output: Tensor) -> Tensor:
        return edited(blocks[index].attention_output, output)

    inputs = [index for index, block in enumerate(blocks) if block.hidden_states or block.context]
    outputs = [index for index, block in enumerate(blocks) if block.attention_output]
    options = _replacing(options, inputs, change)
    return _watched(model, outputs, change_output, partial(run, options)) if outputs else run(options)


def _recorded(
    model: Any, operation: Operation, run: Callable[[dict], Tensor], options: dict[str, Any]
) -> dict[int, Tensor]:
    """What the blocks hold at the operation's site in another run of the model, on the CPU."""
    held: dict[int, Tensor] = {}

    def keep(index: int, values: Tensor) -> None:
        held[index] = values.detach().to("cpu", copy=True)

    def keep_tokens(index: int, given: dict[str, Any]) -> dict[str, Any]:
        keep(index, given["img"])
        return given

    options = {**options, RECORDING: True}
    if operation.site == "hidden_states":
        run(_replacing(options, operation.blocks, keep_tokens))
    else:
        _watched(model, operation.blocks, keep, partial(run, options))
    return held


def _replacing(options: dict[str, Any], blocks: Iterable[int], change: Change) -> dict[str, Any]:
    """Options of a call in which these blocks are given something else; what replaced them before stays around them."""
    replaced = options.get("patches_replace", {})
    dit = dict(replaced.get("dit", {}))
    for index in blocks:
        place = ("double_block", index)
        dit[place] = _around(dit.get(place), partial(change, index))
    return {**options, "patches_replace": {**replaced, "dit": dit}}


def _around(before: Callable | None, change: Callable[[dict], dict]) -> Callable[[dict, dict], dict]:
    def replacement(given: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        def block(given: dict[str, Any]) -> dict[str, Any]:
            return extra["original_block"](change(given))

        return block(given) if before is None else before(given, {**extra, "original_block": block})

    return replacement


@torch.compiler.disable(recursive=True)
def _watched(
    model: Any, blocks: Iterable[int], act: Callable[[int, Tensor], Tensor | None], run: Callable[[], Tensor]
) -> Tensor:
    """A run in which `act` sees, and may replace, what these blocks' cross-attention returns; it is not compiled.

    Nothing that ComfyUI lets one replace lies between cross-attention and the sum that it goes into. A compiled block
    would not look at a hook that comes after its compilation, and would keep one that was there.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for index in blocks:
            handle = model.blocks[index].cross_attn.register_forward_hook(_hook(partial(act, index)))
            stack.callback(handle.remove)
        return run()


def _hook(act: Callable[[Tensor], Tensor | None]) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
    return lambda module, inputs, output: act(output)
