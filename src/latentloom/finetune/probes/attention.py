"""How far an adapter moves the attention logits, by the ratio of their standard deviations before and after it.

The spread of a query's logits over the keys sets how sharply softmax attends; a ratio above 1 sharpens, one below 1
blurs. Two ratios are taken per layer: with the same inputs, where only the layer's own adapter acts, and through the
whole model, where the adapters of the layers before it have acted on its inputs too.

The logits q.k of one query over all keys have the variance q^T C q, with C the keys' covariance, d by d per head; so no
logits are formed, however many keys there are. Padding rows of a text are all equal and count as one key: hundreds of
them would make every text's spread look alike.

Source: the Wan 2.2 trainer document, "Attention logit probe".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentloom.errors import ConfigError
from latentloom.finetune.adapter_files import Adapter
from latentloom.finetune.lora import diffusers_name
from latentloom.runs import track
from latentloom.tensors import TextEmbeddings
from latentloom.wan.clip_size import ClipSize
from latentloom.wan.pipeline import WanPipeline
from latentloom.wan.sampling import SamplingSettings, build_scheduler, draw_noise

TYPES = ("cross_attn", "self_attn")
_MODULES = ("attn2", "attn1")
NUM_POINTS = 3
NUM_QUERIES = 256


@dataclass(frozen=True, eq=False)
class AttentionDrift:
    """Spreads of attention logits at T timesteps, in N blocks, K = 2 types of attention (`TYPES`) and H heads.

    A spread is the standard deviation over the keys, averaged over the sampled queries and the prompts.

    Attributes:
        timesteps: from noise down.
        before: without the adapter.
        after: with it, at the inputs that the layers have without it.
        through: with it in the whole model.
    """

    timesteps: tuple[float, ...]
    before: Float[Tensor, "T N K H"]
    after: Float[Tensor, "T N K H"]
    through: Float[Tensor, "T N K H"]

    @property
    def ratio(self) -> Float[Tensor, "T N K"]:
        """After over before, at the same inputs."""
        return _ratio(self.after.mean(dim=-1), self.before.mean(dim=-1))

    @property
    def through_ratio(self) -> Float[Tensor, "T N K"]:
        """After over before, through the whole model."""
        return _ratio(self.through.mean(dim=-1), self.before.mean(dim=-1))

    @property
    def head_ratio(self) -> Float[Tensor, "T N K H"]:
        """After over before by head, at the same inputs."""
        return _ratio(self.after, self.before)

    @property
    def drift(self) -> float:
        """The largest distance from 1 of any layer's ratio at any timestep, of both kinds."""
        return float(torch.stack([self.ratio, self.through_ratio]).sub(1).abs().max())


@torch.no_grad()
def attention_drift(
    pipeline: WanPipeline,
    adapter: Adapter,
    text: TextEmbeddings,
    *,
    transformer: WanTransformer3DModel | None = None,
    seed: int = 0,
    num_points: int = NUM_POINTS,
    num_queries: int = NUM_QUERIES,
    size: ClipSize | None = None,
    settings: SamplingSettings | None = None,
) -> AttentionDrift:
    """Spreads of the attention logits without and with an adapter, at latents that the model passes without it.

    Args:
        pipeline: a text-to-video model.
        adapter: A and B by official name; it must fit, see `lora_delta.stored_keys`.
        text: the prompts, as the pipeline encodes them.
        transformer: the one that the adapter is for, of the pipeline's two; None is its (high-noise) transformer.
        seed: of the noise, the same for every prompt, and of the choice of queries.
        num_points: timesteps, evenly spread over the steps that this transformer has in the schedule.
        num_queries: video tokens whose logits are measured; fewer if there are not as many.
        size, settings: as in `WanPipeline.sample`; the model's own where None.

    Raises:
        ConfigError: more points than steps, or a model that reads image tokens beside the text.
    """
    transformer = pipeline.transformer if transformer is None else transformer
    size = size or ClipSize.for_model(pipeline.facts)
    settings = settings or SamplingSettings.for_model(pipeline.facts)
    if transformer.config["added_kv_proj_dim"] is not None:
        raise ConfigError("this model reads image tokens beside the text; give a text-to-video model")
    steps = _points(pipeline, transformer, settings, num_points)
    passed = _trajectory(pipeline, text, steps, size, settings, seed)
    order = torch.randperm(pipeline.grid.num_tokens(size), generator=torch.Generator().manual_seed(seed))
    switch = _Switch(transformer, adapter, pipeline.device)
    found = []
    with switch.installed():
        for step, index in track([(step, index) for step in steps for index in range(len(text))], "measuring"):
            prompt, latents = text[[index]], passed[step][index : index + 1].to(pipeline.device)
            look = partial(_spread, num_text_rows=int(prompt.lengths[0]) + 1, queries=order[:num_queries])
            timestep = torch.tensor(steps[step], device=pipeline.device)
            ask = partial(pipeline.predict, transformer, latents, timestep, prompt)
            found.append(_three_spreads(transformer, switch, look, ask))
    before, after, through = torch.stack(found).unflatten(0, (len(steps), -1)).mean(dim=1).unbind(dim=1)
    return AttentionDrift(tuple(steps.values()), before, after, through)


def _three_spreads(
    transformer: WanTransformer3DModel, switch: "_Switch", look: "Look", ask: Callable[[], Tensor]
) -> Float[Tensor, "3 N K H"]:
    """Before, after at the same inputs, and after through the whole model, for one prompt at one timestep."""
    same, through = _Watch(switch, look, compares=True), _Watch(switch, look, compares=False)
    with same.on(transformer):
        ask()
    switch.is_on = True
    with through.on(transformer):
        ask()
    switch.is_on = False
    seen = [torch.stack(spreads) for spreads in (same.plain, same.changed, through.plain)]
    return torch.stack(seen).unflatten(1, (-1, len(TYPES)))


class _Switch:
    """Adds an adapter's changes to what its layers answer, while it is on; the weights stay as they are."""

    def __init__(self, transformer: WanTransformer3DModel, adapter: Adapter, device: torch.device) -> None:
        self.is_on = False
        self._layers = {
            transformer.get_submodule(diffusers_name(name)): (down.to(device).float(), up.to(device).float())
            for name, (down, up) in adapter.items()
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in self._layers:
                stack.callback(layer.register_forward_hook(self._add).remove)
            yield

    def _add(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not self.is_on:
            return None
        down, up = self._layers[layer]
        return output + (args[0].float() @ down.mT @ up.mT).to(output.dtype)


Look = Callable[..., Float[Tensor, "H"]]


class _Watch:
    """Takes the spread of every attention layer's logits while the model runs, blocks in order, types as in `TYPES`.

    With `compares`, each layer is asked a second time at the same inputs, its adapter on.
    """

    def __init__(self, switch: _Switch, look: Look, compares: bool) -> None:
        self.switch, self.look, self.compares = switch, look, compares
        self._found: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    @property
    def plain(self) -> list[Float[Tensor, "H"]]:
        """Spreads as the model ran."""
        return [self._found[place][0] for place in sorted(self._found)]

    @property
    def changed(self) -> list[Float[Tensor, "H"]]:
        """Spreads with the adapter on, at the same inputs."""
        return [self._found[place][1] for place in sorted(self._found)]

    @contextmanager
    def on(self, model: WanTransformer3DModel) -> Iterator[None]:
        """Watch the model's calls within this context."""
        with ExitStack() as stack:
            for number, block in enumerate(_blocks(model)):
                for kind, name in enumerate(_MODULES):
                    hook = partial(self._see, (number, kind))
                    handle = block.get_submodule(name).register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _see(
        self, place: tuple[int, int], layer: WanAttention, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        names = ("hidden_states", "encoder_hidden_states", "attention_mask", "rotary_emb")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        asking, context, rotary = (given.get(name) for name in (names[0], names[1], names[3]))
        plain = changed = self.look(layer, asking, context, rotary)
        if self.compares:
            self.switch.is_on = True
            changed = self.look(layer, asking, context, rotary)
            self.switch.is_on = False
        self._found[place] = plain.cpu(), changed.cpu()


def _spread(
    layer: WanAttention,
    asking: Float[Tensor, "1 S D"],
    context: Float[Tensor, "1 P D"] | None,
    rotary: tuple[Tensor, Tensor] | None,
    num_text_rows: int,
    queries: Int[Tensor, "Q"],
) -> Float[Tensor, "H"]:
    """The standard deviation of each head's logits over the keys, averaged over the queries.

    Args:
        layer: a block's `attn1` or `attn2`.
        asking: what queries are made of.
        context: what keys are made of in cross-attention; None for `asking`.
        rotary: cosines and sines of the positions in self-attention.
        num_text_rows: rows of the context that count: the prompt's tokens and one row of padding.
        queries: positions in `asking`.
    """
    queries = queries.to(asking.device)
    source = asking if context is None else context[:, :num_text_rows]
    query = layer.norm_q(layer.to_q(asking[:, queries])).unflatten(2, (layer.heads, -1)).float()
    key = layer.norm_k(layer.to_k(source)).unflatten(2, (layer.heads, -1)).float()
    if rotary is not None:
        query = _rotated(query, *(angles[:, queries] for angles in rotary))
        key = _rotated(key, *rotary)
    query, key = query[0].transpose(0, 1), key[0].transpose(0, 1)  # [H, Q, d] and [H, K, d]
    centred = key - key.mean(dim=1, keepdim=True)
    covariance = centred.mT @ centred / key.shape[1]
    variance = ((query @ covariance) * query).sum(dim=-1) / query.shape[-1]
    return variance.clamp_min(0).sqrt().mean(dim=-1)


def _rotated(
    rows: Float[Tensor, "1 S H d"], cosines: Float[Tensor, "1 S 1 d"], sines: Float[Tensor, "1 S 1 d"]
) -> Float[Tensor, "1 S H d"]:
    """Rows turned by their positions' angles, neighbouring channels as pairs, as WanAttnProcessor turns them."""
    even, odd = rows[..., 0::2], rows[..., 1::2]
    cosine, sine = cosines[..., 0::2].float(), sines[..., 1::2].float()
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)


def _blocks(model: WanTransformer3DModel) -> Sequence[nn.Module]:
    return list(model.blocks)


def _points(
    pipeline: WanPipeline, transformer: WanTransformer3DModel, settings: SamplingSettings, count: int
) -> dict[int, float]:
    """Steps of the schedule in which the transformer is in charge, evenly spread, with their timesteps."""
    timesteps = [float(timestep) for timestep in build_scheduler(settings).timesteps]
    its = [step for step, at in enumerate(timesteps) if pipeline.expert(at, settings)[0] is transformer]
    if not 1 <= count <= len(its):
        raise ConfigError(
            f"{count} points, and this transformer has {len(its)} of the schedule's {settings.steps} steps; "
            f"give 1 to {len(its)}, or more steps"
        )
    chosen = [its[round(place * (len(its) - 1) / max(1, count - 1))] for place in range(count)]
    return {step: timesteps[step] for step in chosen}


def _trajectory(
    pipeline: WanPipeline,
    text: TextEmbeddings,
    steps: Mapping[int, float],
    size: ClipSize,
    settings: SamplingSettings,
    seed: int,
) -> dict[int, Float[Tensor, "B C T H W"]]:
    """The latents that enter these steps when every prompt is sampled from one seed, on the CPU."""
    seeds = [seed] * len(text)
    found: dict[int, list[Tensor]] = {step: [] for step in steps}
    bar = track(settings.steps * len(pipeline.batches(len(seeds), size)), "sampling")
    next(bar)  # the bar counts a step when the next one is asked for

    def keep(step: int, timestep: float, latents: Tensor) -> None:
        if step + 1 in found:  # what a step returns enters the next one
            found[step + 1].append(latents.cpu())
        next(bar, None)

    if max(steps) > 0:
        pipeline.sample(text, size=size, settings=settings, seeds=seeds, callback=keep)
    noise = draw_noise(pipeline.grid.shape(size), seeds)
    return {step: torch.cat(chunks) if step else noise for step, chunks in found.items()}


def _ratio(after: Tensor, before: Tensor) -> Tensor:
    return (after / before).where(after != before, torch.ones_like(after))  # nothing moved is 1, of nothing too
