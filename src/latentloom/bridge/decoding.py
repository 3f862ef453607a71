"""From sentence vectors to texts, one token after the other."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor
from transformers import DynamicCache

from latentloom.bridge.config import Count, Number, Positive
from latentloom.bridge.loss import logit_chunks
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.token_choice import draw, most_likely, without_repeats
from latentloom.errors import ConfigError, ShapeError
from latentloom.runs import Config
from latentloom.tensors import SentenceVector


class DecodingConfig(Config):
    """How texts are made from vectors.

    Args:
        mode: `greedy` takes the most likely token each time, `sample` draws it.
        num_samples: texts drawn per vector.
        temperature: below 1 sharpens what is drawn from.
        top_p: draw from the fewest tokens that hold this share of the probability.
        top_k: draw from this many tokens at most; None sets no limit.
        no_repeat_ngram: no run of this many tokens occurs twice in a text; 0 allows it.
        max_new_tokens: longest text, in tokens.
        batch_size: texts decoded at a time; it changes speed and memory alone.
    """

    mode: Literal["greedy", "sample"] = "greedy"
    num_samples: Count = 1
    temperature: Positive = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Count | None = None
    no_repeat_ngram: Number = 0
    max_new_tokens: Count = 40
    batch_size: Count = 64

    @model_validator(mode="after")
    def _is_possible(self) -> "DecodingConfig":
        if self.mode == "greedy" and self.num_samples > 1:
            raise ValueError(
                f"mode = greedy makes one text per vector, not {self.num_samples}; give mode = sample to draw several"
            )
        return self


GREEDY = DecodingConfig()


@torch.no_grad()
def decode(
    bridge: LatentBridge,
    vectors: SentenceVector | None,
    config: DecodingConfig = GREEDY,
    generator: torch.Generator | None = None,
    prompts: str | Sequence[str] = "",
) -> list[list[str]]:
    """The texts of each vector, `num_samples` of them.

    A text depends on its vector, its prompt and the generator, not on the batch it was made in.

    Args:
        bridge: trained, in any mode; dropout is off meanwhile.
        vectors: to say, at the scale the bridge was trained on; None decodes once without a vector.
        config: how tokens are chosen.
        generator: what is drawn with; not used when greedy.
        prompts: how every text begins, or one beginning for each vector.

    Raises:
        ShapeError: vectors of another width, or not one prompt for each.
        ConfigError: sampling without a generator.
        CheckpointError: the bridge was trained for the other direction alone.
    """
    bridge.require_direction("l2t")
    if config.mode == "sample" and generator is None:
        raise ConfigError("mode = sample draws tokens; give a generator")
    num = 1 if vectors is None else len(vectors)
    begun = prompt_tokens(bridge, prompts, num)
    num_at_once = max(1, config.batch_size // config.num_samples)
    texts: list[list[str]] = []
    with inference(bridge):
        for start in range(0, num, num_at_once):
            rows = slice(start, min(num, start + num_at_once))
            prefix = bridge.prefix(None, 1) if vectors is None else bridge.prefix(vectors.values[rows])
            before, seen = with_prompts(bridge, prefix, begun[rows])
            draws = None
            if generator is not None and config.mode == "sample":
                size = (len(before) * config.num_samples, config.max_new_tokens)
                draws = torch.rand(size, generator=generator, device=generator.device).to(bridge.device)
            ids = continue_tokens(bridge, before, seen, config, draws)
            for index, first in enumerate(begun[rows]):
                own = ids[index * config.num_samples : (index + 1) * config.num_samples]
                texts.append([bridge.backbone.text([*first, *row]) for row in own])
    return texts


def continue_tokens(
    bridge: LatentBridge,
    before: Float[Tensor, "B L H"],
    seen: Bool[Tensor, "B L"],
    config: DecodingConfig,
    draws: Float[Tensor, "N T"] | None,
) -> list[list[int]]:
    """The tokens that follow each row, `num_samples` continuations side by side, the end token included where it came.

    Args:
        before: what the backbone has read, padded on the left.
        seen: False where that is padding.
        config: how tokens are chosen; T is its `max_new_tokens`.
        draws: a number of [0, 1) for each token of the N = B * num_samples continuations; None chooses greedily.
    """
    backbone, cache = bridge.backbone, DynamicCache(config=bridge.backbone.model.config)
    weight = backbone.output_weight.to(before.dtype)
    states = next_states(bridge, before, seen, cache).repeat_interleave(config.num_samples, 0)
    cache.batch_repeat_interleave(config.num_samples)
    seen = seen.repeat_interleave(config.num_samples, 0)
    going = torch.arange(len(states), device=states.device)
    tokens = torch.full((len(states), config.max_new_tokens), backbone.end_id, device=states.device)
    for step in range(config.max_new_tokens):
        numbers = None if draws is None else draws[going, step]
        chosen = _choose(states, weight, tokens[going, :step], numbers, config)
        tokens[going, step] = chosen
        open_ended = chosen != backbone.end_id
        if step + 1 == config.max_new_tokens or not open_ended.any():
            break
        if not open_ended.all():  # a finished text would cost as much as the others
            cache.batch_select_indices(open_ended.nonzero()[:, 0])
            going, seen, chosen = going[open_ended], seen[open_ended], chosen[open_ended]
        seen = torch.cat([seen, seen.new_ones(len(seen), 1)], dim=1)
        embeddings = backbone.embedding(chosen[:, None]).to(before.dtype)
        states = next_states(bridge, embeddings, seen, cache)
    return [cut_at_end(row, backbone.end_id) for row in tokens.tolist()]


def _choose(
    states: Float[Tensor, "B H"],
    weight: Float[Tensor, "V H"],
    tokens: Int64[Tensor, "B T"],
    numbers: Float[Tensor, "B"] | None,
    config: DecodingConfig,
) -> Int64[Tensor, "B"]:
    """The next token of each row, by its last state, its tokens so far and, where it is drawn, a number of [0, 1)."""
    chosen = []
    for rows in logit_chunks(states, weight):
        logits = without_repeats((states[rows] @ weight.T).float(), tokens[rows], config.no_repeat_ngram)
        if numbers is None:
            chosen.append(most_likely(logits))
        else:
            chosen.append(draw(logits, numbers[rows], config.temperature, config.top_p, config.top_k))
    return torch.cat(chosen)


def next_states(
    bridge: LatentBridge, embeddings: Float[Tensor, "B n H"], seen: Bool[Tensor, "B L"], cache: DynamicCache
) -> Float[Tensor, "B H"]:
    """State of the last of these embeddings in each row, read after what the cache holds.

    Args:
        embeddings: the last n of the L positions.
        seen: False where a position is padding, for cached positions too.
        cache: takes the new positions up.
    """
    positions = (seen.long().cumsum(1) - 1).clamp_min(0)[:, -embeddings.shape[1] :]
    return bridge.backbone.decoder(
        inputs_embeds=embeddings,
        attention_mask=None if bool(seen.all()) else seen.long(),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[:, -1]


def with_prompts(
    bridge: LatentBridge, prefix: Float[Tensor, "B P H"], begun: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "B L H"], Bool[Tensor, "B L"]]:
    """Prefix and prompt of each row as embeddings, padded on the left, and what of them is no padding.

    Args:
        prefix: from the bridge.
        begun: tokens of each row's prompt; none is allowed.
    """
    longest = max(len(row) for row in begun)
    if not longest:
        return prefix, torch.ones(prefix.shape[:2], dtype=torch.bool, device=prefix.device)
    length = prefix.shape[1] + longest
    before = prefix.new_zeros(len(prefix), length, prefix.shape[2])
    seen = torch.zeros(len(prefix), length, dtype=torch.bool, device=prefix.device)
    for index, row in enumerate(begun):
        words = bridge.backbone.embedding(torch.tensor(row, dtype=torch.long, device=prefix.device))
        first = longest - len(row)
        before[index, first:] = torch.cat([prefix[index], words.to(prefix.dtype)])
        seen[index, first:] = True
    return before, seen


def prompt_tokens(bridge: LatentBridge, prompts: str | Sequence[str], num: int) -> list[list[int]]:
    """Tokens of the prompt of each of `num` rows.

    Raises:
        ShapeError: neither one prompt nor one for each row.
    """
    if not isinstance(prompts, str) and len(prompts) != num:
        raise ShapeError(f"{len(prompts)} prompts for {num} vectors; give one for all of them or one for each")
    if isinstance(prompts, str):
        return bridge.backbone.tokenize([prompts], bridge.config.max_seq_len) * num
    return bridge.backbone.tokenize(prompts, bridge.config.max_seq_len)


@contextmanager
def inference(bridge: LatentBridge) -> Iterator[None]:
    """The bridge without dropout, and parts of it that are trained in float32 read in the backbone's dtype."""
    modes = [(module, module.training) for module in bridge.modules()]
    with ExitStack() as stack:
        stack.enter_context(_one_dtype(bridge))
        try:
            bridge.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training


def cut_at_end(tokens: Sequence[int], end_id: int) -> list[int]:
    """The tokens up to the first end token, that one included."""
    return list(tokens[: tokens.index(end_id) + 1]) if end_id in tokens else list(tokens)


def _one_dtype(bridge: LatentBridge) -> AbstractContextManager:
    mixed = any(parameter.dtype != bridge.dtype for parameter in bridge.network.parameters())
    return torch.autocast(bridge.device.type, dtype=bridge.dtype, enabled=mixed)
