"""Several tokens of a text at a time, for backbones that were trained to fill in masked tokens.

Source: Liu et al. 2025, "WeDLM: Reconciling Diffusion Language Models with Standard Causal Attention for Fast
Inference" (arXiv 2512.22737), sections 3 and 4: tokens that are known stand before masked ones while each keeps the
position it has in the text, so that causal attention lets a mask see all of them, and what is known without a gap from
the left can stay in an ordinary cache. Here a sentence vector's prefix takes the place of a prompt's beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import Count, NotNegative, Positive
from latentloom.bridge.decoding import cut_at_end, inference, prompt_tokens, with_prompts
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.token_choice import draw, entropy, most_likely
from latentloom.errors import ConfigError
from latentloom.runs import Config
from latentloom.tensors import SentenceVector


class WindowConfig(Config):
    """How texts are made from vectors with several tokens in one pass.

    Args:
        window: positions of the text that are looked at in a pass, filled or masked.
        entropy_threshold: tokens whose entropy in nats, with the penalty, is below it are filled in together; the
            surest one always is. The WeDLM paper uses 0.4 to 0.6.
        position_penalty: nats added for each position that a mask is behind the first one.
        mode: `greedy` takes the most likely token, `sample` draws it.
        temperature, top_p, top_k: of drawn tokens, as in `DecodingConfig`.
        max_new_tokens: longest text, in tokens.
        mask_token: what stands for a masked token, as the tokenizer writes it; None takes what the model's config or
            its tokenizer names.
    """

    window: Count = 16
    entropy_threshold: NotNegative = 0.4
    position_penalty: NotNegative = 0.02
    mode: Literal["greedy", "sample"] = "greedy"
    temperature: Positive = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    top_k: Count | None = None
    max_new_tokens: Count = 40
    mask_token: str | None = None


WINDOW = WindowConfig()


@dataclass(frozen=True)
class WindowTexts:
    """Texts, and what they cost.

    Attributes:
        texts: one for each vector.
        num_tokens: that were made for each, the end token included.
        num_passes: of the backbone for each; one token after the other takes as many as there are tokens.
    """

    texts: list[str]
    num_tokens: list[int]
    num_passes: list[int]


@torch.no_grad()
def decode_in_windows(
    bridge: LatentBridge,
    vectors: SentenceVector | None,
    config: WindowConfig = WINDOW,
    generator: torch.Generator | None = None,
    prompts: str | Sequence[str] = "",
) -> WindowTexts:
    """A text of each vector, one vector after the other, in fewer passes than there are tokens.

    Args:
        bridge: on a backbone that was trained to fill in masked tokens, such as WeDLM.
        vectors: to say; None decodes once without a vector.
        config: the window, and how tokens are chosen.
        generator: what is drawn with; not used when greedy.
        prompts: how every text begins, or one beginning for each vector.

    Raises:
        ConfigError: a backbone without a mask token, or sampling without a generator.
        ShapeError: vectors of another width, or not one prompt for each.
        CheckpointError: the bridge was trained for the other direction alone.
    """
    bridge.require_direction("l2t")
    if config.mode == "sample" and generator is None:
        raise ConfigError("mode = sample draws tokens; give a generator")
    mask = mask_id(bridge.backbone, config.mask_token)
    num = 1 if vectors is None else len(vectors)
    begun = prompt_tokens(bridge, prompts, num)
    found = WindowTexts([], [], [])
    with inference(bridge):
        for row in range(num):
            prefix = bridge.prefix(None, 1) if vectors is None else bridge.prefix(vectors.values[row : row + 1])
            before, _ = with_prompts(bridge, prefix, begun[row : row + 1])
            draws = None
            if generator is not None and config.mode == "sample":
                draws = torch.rand(config.max_new_tokens, generator=generator, device=generator.device)
            tokens, num_passes = _fill(bridge, before, mask, config, draws)
            found.texts.append(bridge.backbone.text([*begun[row], *tokens]))
            found.num_tokens.append(len(tokens))
            found.num_passes.append(num_passes)
    return found


def mask_id(backbone: Backbone, mask_token: str | None = None) -> int:
    """The token that stands for a masked one: as named, else as the model's config or its tokenizer says.

    Raises:
        ConfigError: there is none.
    """
    tokenizer = backbone.tokenizer
    if mask_token is not None:
        number = tokenizer.get_vocab().get(mask_token)
        if number is None or number >= backbone.vocab_size:
            raise ConfigError(f"mask_token = {mask_token!r} is no token of {backbone.name}; give one of its vocabulary")
        return number
    known = (getattr(backbone.model.config, "mask_token_id", None), tokenizer.mask_token_id)
    number = next((token for token in known if isinstance(token, int)), None)
    if number is None:
        raise ConfigError(
            f"{backbone.name} has no mask token, so it cannot fill in several tokens at a time; decode without a "
            "window, use a WeDLM backbone, or name the token that it was trained with (mask_token)"
        )
    return number


@dataclass
class Window:
    """The positions of a text after what the cache holds: filled ones and masks.

    Attributes:
        start: tokens of the text that are done, and in the cache.
        limit: tokens the text may still have at most in all.
        tokens: of each position in the window; None where it is masked.
    """

    start: int
    limit: int
    tokens: list[int | None] = field(default_factory=list)

    def refill(self, size: int) -> None:
        """Add masks at the end: as many as there are positions done from the left, up to the limit.

        The number of positions that are not done stays the same, and so does the work of a pass.
        """
        masks = size - (len(self.tokens) - self.num_done)
        room = self.limit - self.start - len(self.tokens)
        self.tokens += [None] * max(0, min(masks, room))

    def order(self) -> list[int]:
        """Places in the window in the order they are read: filled ones, then masks, each from the left."""
        return sorted(range(len(self.tokens)), key=lambda place: (self.tokens[place] is None, place))

    @property
    def masked(self) -> list[int]:
        return [place for place, token in enumerate(self.tokens) if token is None]

    @property
    def num_done(self) -> int:
        """Positions that are filled from the left without a gap."""
        return next(iter(self.masked), len(self.tokens))

    def fill(self, places: Sequence[int], tokens: Sequence[int], end_id: int) -> None:
        """Put tokens in places; what would come after an end token is dropped."""
        for place, token in zip(places, tokens, strict=True):
            self.tokens[place] = token
        if end_id in self.tokens:
            del self.tokens[self.tokens.index(end_id) + 1 :]
            self.limit = self.start + len(self.tokens)

    def slide(self) -> list[int]:
        """The positions that are done, which leave the window."""
        done = [token for token in self.tokens[: self.num_done] if token is not None]
        del self.tokens[: len(done)]
        self.start += len(done)
        return done


def _fill(
    bridge: LatentBridge,
    before: Float[Tensor, "1 L H"],
    mask: int,
    config: WindowConfig,
    draws: Float[Tensor, "T"] | None,
) -> tuple[list[int], int]:
    """The tokens after these embeddings, the end token included where it came, and the passes they took."""
    backbone, cache = bridge.backbone, DynamicCache(config=bridge.backbone.model.config)
    weight = backbone.output_weight.to(before.dtype)
    window, done, unread, num_passes = Window(0, config.max_new_tokens), [], before, 0
    while window.start + window.num_done < window.limit:
        window.refill(config.window)
        order, masked = window.order(), window.masked
        ids = torch.tensor([[mask if (token := window.tokens[place]) is None else token for place in order]])
        positions = torch.tensor([before.shape[1] + window.start + place for place in order])
        states = read_reordered(bridge, unread, ids.to(before.device), positions.to(before.device), cache)
        num_passes += 1
        # What is done was read after nothing but what precedes it: it stays in the cache, the rest of the window goes.
        cache.crop(window.num_done - len(order))
        unread = before[:, :0]
        logits = (states[-len(masked) :] @ weight.T).float()
        logits[:, mask] = -torch.inf
        first = window.start
        done += window.slide()
        places = [place - (window.start - first) for place in masked]
        chosen, surest = _surest(logits, places, config, None if draws is None else draws[window.start :])
        window.fill([places[index] for index in surest], [chosen[index] for index in surest], backbone.end_id)
    done += window.slide()
    return cut_at_end(done, backbone.end_id), num_passes


def read_reordered(
    bridge: LatentBridge,
    unread: Float[Tensor, "1 L H"],
    ids: Int64[Tensor, "1 W"],
    positions: Int64[Tensor, "W"],
    cache: DynamicCache,
) -> Float[Tensor, "W H"]:
    """States of a window's tokens, read in the order given, each at its own position.

    Args:
        unread: embeddings that come first, at positions from 0, where the cache is empty; none afterwards.
        ids: tokens in the order they are read.
        positions: of each, counted from the first embedding.
        cache: takes up all that is read.
    """
    embeddings = torch.cat([unread, bridge.backbone.embedding(ids).to(unread.dtype)], dim=1)
    first = torch.arange(unread.shape[1], device=positions.device)
    return bridge.backbone.decoder(
        inputs_embeds=embeddings,
        position_ids=torch.cat([first, positions])[None],
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state[0, unread.shape[1] :]


def _surest(
    logits: Float[Tensor, "M V"], places: Sequence[int], config: WindowConfig, draws: Float[Tensor, "T"] | None
) -> tuple[list[int], list[int]]:
    """The token of each mask, and which of the masks are sure enough to be filled, at least one.

    Args:
        logits: of M masks.
        places: of each in the window.
        draws: a number for each place of the window; None chooses greedily.
    """
    behind = torch.tensor(places, device=logits.device) - places[0]
    doubt = entropy(logits) + config.position_penalty * behind
    surest = (doubt < config.entropy_threshold).nonzero()[:, 0].tolist() or [int(doubt.argmin())]
    if draws is None:
        return most_likely(logits).tolist(), surest
    numbers = draws[places].to(logits.device)
    return draw(logits, numbers, config.temperature, config.top_p, config.top_k).tolist(), surest
