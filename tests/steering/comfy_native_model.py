"""A stand-in for ComfyUI's Wan model, its patcher and its sampler's call, with the interface that the host uses."""

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from steering.official_wan import Attention, OfficialBlock, OfficialWan
from torch import Tensor, nn

from latentloom.tensors import TextEmbeddings

COND, UNCOND = 0, 1


class CrossAttention(Attention):
    def forward(self, x: Tensor, context: Tensor, context_img_len: int | None = None, **kwargs: Any) -> Tensor:
        images = self.attend(x, context[:, :context_img_len]) if context_img_len else 0
        return self.o(self.attend(x, context[:, context_img_len or 0 :]) + images)


class NativeBlock(OfficialBlock):
    cross_attention = CrossAttention

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        freqs: Tensor,
        context: Tensor,
        context_img_len: int | None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> Tensor:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + e).chunk(6, dim=1)
        x = x + gate * self.self_attn(self.norm1(x) * (1 + scale) + shift, freqs)
        x = x + self.cross_attn(self.norm3(x), context, context_img_len=context_img_len)
        for patch in (transformer_options or {}).get("patches", {}).get("attn2_patch", []):
            x = patch({"x": x, "transformer_options": transformer_options})
        return x + ffn_gate * self.ffn(self.norm2(x) * (1 + ffn_scale) + ffn_shift)


class NativeWan(OfficialWan):
    """The model; with `img_emb` the rows of `clip_fea` stand before the text's."""

    block = NativeBlock

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.img_emb: nn.Module | None = None

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None = None,
        time_dim_concat: Tensor | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = {} if transformer_options is None else transformer_options
        executor = Executor(self._forward, self, wrappers_of("diffusion_model", options))
        return executor.execute(x, timestep, context, clip_fea, time_dim_concat, options, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        clip_fea: Tensor | None,
        time_dim_concat: Tensor | None,
        transformer_options: dict[str, Any],
    ) -> Tensor:
        tokens, e, e0, freqs, grid = self.embedded(x, timestep)
        context, num_image_rows = self.text_embedding(context), None
        if clip_fea is not None and self.img_emb is not None:
            context, num_image_rows = torch.cat([self.img_emb(clip_fea), context], dim=1), clip_fea.shape[1]
        dit = transformer_options.get("patches_replace", {}).get("dit", {})
        for index, block in enumerate(self.blocks):
            transformer_options["block_index"] = index

            def run(args: dict[str, Any], block: nn.Module = block) -> dict[str, Tensor]:
                options = args["transformer_options"]
                return {"img": block(args["img"], args["vec"], args["pe"], args["txt"], num_image_rows, options)}

            args = {"img": tokens, "txt": context, "vec": e0, "pe": freqs, "transformer_options": transformer_options}
            replacement = dit.get(("double_block", index))
            tokens = (run(args) if replacement is None else replacement(args, {"original_block": run}))["img"]
        return self.unpatchified(self.head(tokens, e), grid)


class Executor:
    """Calls wrappers one within the other, and the original within all of them."""

    def __init__(
        self, original: Callable[..., Tensor], class_obj: object, wrappers: list[Callable[..., Tensor]]
    ) -> None:
        self.original, self.class_obj, self.wrappers = original, class_obj, wrappers

    def execute(self, *args: Any, **kwargs: Any) -> Tensor:
        if not self.wrappers:
            return self.original(*args, **kwargs)
        return self.wrappers[0](Executor(self.original, self.class_obj, self.wrappers[1:]), *args, **kwargs)

    __call__ = execute


def wrappers_of(kind: str, options: dict[str, Any]) -> list[Callable[..., Tensor]]:
    return [wrapper for some in options.get("wrappers", {}).get(kind, {}).values() for wrapper in some]


class NativePatcher:
    """A model's options; a clone shares the model.

    Args:
        diffusion_model: the transformer.
        shift: of the sampler's schedule; None for a sampler without one.
    """

    def __init__(self, diffusion_model: nn.Module, shift: float | None = 3.0) -> None:
        sampling = SimpleNamespace() if shift is None else SimpleNamespace(shift=shift)
        self.model = SimpleNamespace(diffusion_model=diffusion_model, model_sampling=sampling)
        self.model_options: dict[str, Any] = {"transformer_options": {}}
        self.wrappers: dict[str, dict[str, list]] = {}

    def clone(self) -> "NativePatcher":
        other = copy.copy(self)
        other.model_options = copy.deepcopy(self.model_options)
        other.wrappers = {
            kind: {key: list(some) for key, some in keyed.items()} for kind, keyed in self.wrappers.items()
        }
        return other

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Callable[..., Any]) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def replace_block(self, index: int, replacement: Callable[[dict, dict], dict]) -> None:
        dit = self.model_options["transformer_options"].setdefault("patches_replace", {}).setdefault("dit", {})
        dit["double_block", index] = replacement

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: TextEmbeddings,
        cond_or_uncond: Sequence[int] = (COND,),
        sample_sigmas: Tensor | None = None,
        clip_fea: Tensor | None = None,
    ) -> Tensor:
        """One call as the sampler makes it: a batch of equal parts, one per entry of `cond_or_uncond`."""
        options: dict[str, Any] = copy.deepcopy(self.model_options)["transformer_options"]
        options |= {"wrappers": copy.deepcopy(self.wrappers), "cond_or_uncond": list(cond_or_uncond)}
        sigmas = torch.full((len(latents),), timestep / 1000)
        options |= {"sigmas": sigmas, "sample_sigmas": sample_sigmas}

        def apply_model(x: Tensor, t: Tensor, c_concat: None, rows: Tensor, control: None, options: dict) -> Tensor:
            return self.model.diffusion_model(x, t * 1000, context=rows, clip_fea=clip_fea, transformer_options=options)

        executor = Executor(apply_model, self.model, wrappers_of("apply_model", options))
        return executor.execute(latents, sigmas, None, text.padded(512), None, options)
