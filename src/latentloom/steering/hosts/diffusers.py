"""Binds a plan to diffusers' `WanTransformer3DModel`, in a `WanPipeline` or alone, by hooks that always come off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel, WanTransformerBlock
from jaxtyping import Float
from torch import Tensor, nn

from latentloom.errors import ConfigError
from latentloom.steering.capture import capture_activations
from latentloom.steering.hosts.compiled import forget_compiled
from latentloom.steering.hosts.payloads import activations_of, payload_rows
from latentloom.steering.inject import Acting, BlockEdits, Injector, Material, TokenEdit, of_clips
from latentloom.steering.plan import ActivationsPayload, Operation, Plan, PromptPayload, RowsPayload
from latentloom.steering.projection import project_rows
from latentloom.steering.text_rows import TextRows
from latentloom.tensors import TextEmbeddings, VideoLatents
from latentloom.wan.folded_padding import FoldedProcessor
from latentloom.wan.model_call import ModelCall
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.text_encoder import MAX_TOKENS

Record = Callable[[ModelCall, Operation, TextEmbeddings], dict[int, Tensor]]
"""(call, operation, prompts) -> what the model's blocks hold at the operation's site if it is run with the prompts."""


@contextmanager
def steer(pipeline: WanPipeline, plan: Plan) -> Iterator[None]:
    """Within this context, what the pipeline samples is changed by the plan; plans may be nested.

    Args:
        pipeline: its transformers get hooks; they and `around_call` are as before on leaving, whatever happens.
        plan: for a model of this depth and width; of two experts both are steered.

    Raises:
        ConfigError: the plan does not fit the model.
    """
    experts = [model for model in (pipeline.transformer, pipeline.transformer_2) if model is not None]
    before = pipeline.around_call

    def record(call: ModelCall, operation: Operation, text: TextEmbeddings) -> dict[int, Tensor]:
        latents, timestep = VideoLatents(call.latents), float(call.timestep)
        # this plan's slots are still empty, so the model answers as if it were not there
        return capture_activations(pipeline, latents, timestep, text, operation.blocks, operation.site).values

    with ExitStack() as stack:
        bound = [stack.enter_context(bind(model, plan, pipeline.device)) for model in experts]

        @contextmanager
        def around(call: ModelCall) -> Iterator[None]:
            binding = next(one for one in bound if one.transformer is call.model)
            with before(call) if before else nullcontext(), binding.call(call, pipeline.folds_padding, record):
                yield

        pipeline.around_call = around
        stack.callback(setattr, pipeline, "around_call", before)
        yield


@contextmanager
def bind(transformer: WanTransformer3DModel, plan: Plan, device: torch.device | str = "cpu") -> Iterator[Binding]:
    """Hooks on a transformer for one plan; they act within the `call` of the binding that this yields.

    Weights may still be on the meta device: they are not used before the first call.

    Raises:
        ConfigError: the plan does not fit the model.
    """
    config = transformer.config
    plan.check(
        len(transformer.blocks), config["num_attention_heads"] * config["attention_head_dim"], config["text_dim"]
    )
    binding = Binding(transformer, plan, device)
    try:
        binding.attach()
        yield binding
    finally:
        binding.detach()


class Binding:
    """A plan on a transformer. The hooks read what to do from one slot per block, which is empty between calls.

    Args:
        transformer: the model.
        plan: fits it.
        device: where it computes.
    """

    def __init__(self, transformer: WanTransformer3DModel, plan: Plan, device: torch.device | str) -> None:
        self.transformer = transformer
        self._injector = Injector(plan, device)
        self._slots = [_Slot() for _ in range(plan.num_blocks)]
        self._handles: list[Any] = []
        self._projected: dict[tuple[int, tuple[int, ...], bool], TextRows] = {}

    def attach(self) -> None:
        """Register the hooks that the plan's operations need.

        Every block gets them, also those that the plan leaves alone: torch compiles all blocks as it finds the first.
        """
        needed = {operation.site for operation in self._injector.plan.operations if operation.blocks}
        for block, slot in zip(self.transformer.blocks, self._slots, strict=True):
            assert isinstance(block, WanTransformerBlock)
            if "hidden_states" in needed:
                self._handles.append(block.register_forward_pre_hook(_hidden_states_hook(slot)))
            if "context" in needed:
                self._handles.append(block.attn2.register_forward_pre_hook(_context_hook(slot)))
            if "attention_output" in needed:
                self._handles.append(block.attn2.register_forward_hook(_attention_output_hook(slot)))
        forget_compiled(self.transformer)

    def detach(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        forget_compiled(self.transformer)

    @contextmanager
    def call(self, call: ModelCall, folded: bool, record: Record | None = None) -> Iterator[None]:
        """Within this context the transformer may be called once, with the plan's edits for this call.

        Args:
            call: who is asked, for which clips, how far along.
            folded: whether the context comes from a padding fold.
            record: how activations of a prompt are had; operations that need them are refused without it.
        """
        acting = self._injector.acting(call.conditional, call.progress)
        if not any(acting):
            yield
            return
        material = [self._material(index, act, call, folded, record) for index, act in enumerate(acting)]
        try:
            contexts: dict[tuple, tuple[Tensor, TextRows]] = {}
            for block, slot in enumerate(self._slots):
                slot.edits = self._injector.edits(block, acting, material)
                slot.lengths = call.text.lengths
                slot.contexts, slot.alike = contexts, self._injector.context_key(block, acting)
            yield
        finally:
            for slot in self._slots:
                slot.edits = None
                slot.contexts = {}

    def _material(
        self, index: int, act: Acting | None, call: ModelCall, folded: bool, record: Record | None
    ) -> Material:
        if act is None:
            return None
        payload = act.operation.payload
        if isinstance(payload, ActivationsPayload):
            return {block: activations_of(values, call.clips) for block, values in payload.activations.values.items()}
        if isinstance(payload, PromptPayload) and act.operation.site != "context":
            if record is None:
                raise ConfigError(
                    f"a prompt on {act.operation.site} needs a second run of the model; record its activations first"
                )
            return record(call, act.operation, of_clips(payload.text, call.clips))
        if isinstance(payload, PromptPayload | RowsPayload):
            key = (index, call.clips, folded)
            if key not in self._projected:
                text_dim = self.transformer.config["text_dim"]
                self._projected[key] = payload_rows(
                    payload, call.clips, self._project, text_dim=text_dim, padded_to=MAX_TOKENS, folded=folded
                )
            return self._projected[key]
        return None

    def _project(self, rows: Float[Tensor, "B K T"]) -> Float[Tensor, "B K D"]:
        return project_rows(self.transformer, rows.to(self._injector.device, self.transformer.dtype))


class _Slot:
    """What one block's hooks do during the call under way.

    The context that enters is mostly the same in every block, and then blocks that edit it alike share the outcome.
    """

    def __init__(self) -> None:
        self.edits: BlockEdits | None = None
        self.lengths: Tensor | None = None
        self.contexts: dict[tuple, tuple[Tensor, TextRows]] = {}
        self.alike: tuple = ()

    def shared(self, edits: tuple, context: Tensor) -> TextRows | None:
        """What another block made of this very context by the same edits."""
        entered, text = self.contexts.get(edits, (None, None))
        return text if entered is context else None

    def share(self, edits: tuple, context: Tensor, text: TextRows) -> TextRows:
        """Keep it for the blocks to come."""
        self.contexts[edits] = (context, text)
        return text


def _hidden_states_hook(slot: _Slot) -> Callable[[nn.Module, tuple], tuple | None]:
    def hook(module: nn.Module, inputs: tuple) -> tuple | None:
        if slot.edits is None or not slot.edits.hidden_states:
            return None
        return (_all(slot.edits.hidden_states, inputs[0]), *inputs[1:])

    return hook


def _attention_output_hook(slot: _Slot) -> Callable[[nn.Module, tuple, Tensor], Tensor | None]:
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor | None:
        if slot.edits is None or not slot.edits.attention_output:
            return None
        return _all(slot.edits.attention_output, output)

    return hook


def _context_hook(slot: _Slot) -> Callable[[nn.Module, tuple], tuple | None]:
    def hook(module: nn.Module, inputs: tuple) -> tuple | None:
        if slot.edits is None or not slot.edits.context:
            return None
        hidden_states, context, bias, rotary_emb = inputs
        # an image-to-video model puts the image's rows before the text's 512
        num_image_rows = context.shape[1] - MAX_TOKENS if module.add_k_proj is not None else 0
        before = slot.shared((), context)
        if before is None:
            folded_from = module.processor.fold.max_length if isinstance(module.processor, FoldedProcessor) else None
            # a plan around this one may have changed the lengths, and then its bias tells them
            lengths = slot.lengths if bias is None else (bias[:, 0, 0, :-1] == 0).sum(dim=1)
            assert lengths is not None
            before = slot.share((), context, TextRows(context[:, num_image_rows:], lengths, folded_from))
        text = slot.shared(slot.alike, context)
        if text is None:
            text = before
            for edit in slot.edits.context:
                text = edit(text)
            slot.share(slot.alike, context, text)
        rows = text.rows.to(context.dtype)
        if num_image_rows:
            rows = torch.cat([context[:, :num_image_rows], rows], dim=1)
        if text.lengths is not before.lengths or rows.shape != context.shape:
            bias = text.bias
        return hidden_states, rows, bias, rotary_emb

    return hook


def _all(edits: tuple[TokenEdit, ...], values: Tensor) -> Tensor:
    for edit in edits:
        values = edit(values)
    return values
