"""A stand-in for ComfyUI-WanVideoWrapper's model, its patcher and its sampler's calls, with their interface."""

import copy
from types import SimpleNamespace
from typing import Any

import torch
from steering.official_wan import Attention, OfficialBlock, OfficialWan
from torch import Tensor, nn

from latentloom.tensors import TextEmbeddings


class CrossAttention(Attention):
    def forward(self, x: Tensor, context: Tensor, grid_sizes: Any = None, **kwargs: Any) -> Tensor:
        return self.o(self.attend(x, context))


class WrapperBlock(OfficialBlock):
    """Works in place on its input, as the host's does, and returns it among other things."""

    cross_attention = CrossAttention

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        freqs: Tensor,
        context: Tensor,
        grid_sizes: Any = None,
        x_ip: None = None,
        transformer_options: dict[str, Any] | None = None,
    ) -> tuple[Tensor, None]:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (self.modulation + e).chunk(6, dim=1)
        y = self.self_attn(torch.addcmul(shift, self.norm1(x), 1 + scale), freqs)
        x.addcmul_(y, gate)
        if len(context) > 1 and len(x) == 1:  # several prompts, each for its share of the clip
            parts = zip(x.chunk(len(context), dim=1), context.split(1), strict=True)
            x = torch.cat([part + self.cross_attn(self.norm3(part), rows, grid_sizes) for part, rows in parts], dim=1)
        else:
            x += self.cross_attn(self.norm3(x), context, grid_sizes)
        y = self.ffn(torch.addcmul(ffn_shift, self.norm2(x), 1 + ffn_scale))
        return x.addcmul(y, ffn_gate), x_ip


class OldWrapperBlock(WrapperBlock):
    """Of a version before blocks were handed `transformer_options`."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, e: Tensor, freqs: Tensor, context: Tensor, grid_sizes: Any = None, x_ip: None = None
    ) -> tuple[Tensor, None]:
        return super().forward(x, e, freqs, context, grid_sizes, x_ip)


class WrapperWan(OfficialWan):
    """The model: clips and prompts come as lists, prompts without padding."""

    block = WrapperBlock
    base_dtype = torch.float32

    def forward(
        self,
        x: list[Tensor],
        t: Tensor,
        context: list[Tensor],
        is_uncond: bool = False,
        current_step_percentage: float = 0.0,
        transformer_options: dict[str, Any] | None = None,
    ) -> tuple[list[Tensor], None, None]:
        tokens, e, e0, freqs, grid = self.embedded(torch.stack(x), t)
        padded = [torch.cat([rows, rows.new_zeros(self.text_len - len(rows), rows.shape[1])]) for rows in context]
        kwargs: dict[str, Any] = {
            "e": e0,
            "freqs": freqs,
            "context": self.text_embedding(torch.stack(padded)),
            "grid_sizes": grid,
            "transformer_options": transformer_options,
        }
        x_ip = None
        for block in self.blocks:
            tokens, x_ip = block(tokens, x_ip=x_ip, **kwargs)
        return list(self.unpatchified(self.head(tokens, e), grid)), None, None


class WrapperPatcher:
    """A model's options; a clone shares the model."""

    def __init__(self, diffusion_model: nn.Module) -> None:
        self.model = SimpleNamespace(diffusion_model=diffusion_model)
        self.model_options: dict[str, Any] = {"transformer_options": {"block_swap_args": None}}

    def clone(self) -> "WrapperPatcher":
        other = copy.copy(self)
        other.model_options = copy.deepcopy(self.model_options)
        return other

    @torch.no_grad()
    def predict(
        self, latents: Tensor, timestep: float, text: TextEmbeddings, is_uncond: bool = False, progress: float = 0.0
    ) -> Tensor:
        """One call as the sampler makes it: one clip with one side's prompts, or both sides' clips in one batch."""
        answers, _, _ = self.model.diffusion_model(
            x=list(latents),
            t=torch.tensor([timestep]).expand(len(latents)),
            context=text.to_list(),
            is_uncond=is_uncond,
            current_step_percentage=progress,
            transformer_options=copy.deepcopy(self.model_options["transformer_options"]),
        )
        return torch.stack(answers)
