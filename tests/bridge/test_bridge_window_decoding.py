"""Filling several masked tokens in a pass gives the text that a model trained for it says one token at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.bridge.decoding import DecodingConfig, decode
from latentloom.bridge.loss import linear_cross_entropy
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.token_choice import entropy
from latentloom.bridge.window_decoding import Window, WindowConfig, decode_in_windows, mask_id, read_reordered
from latentloom.errors import ConfigError
from latentloom.tensors import SentenceVector

MASK = "<|im_start|>"  # Qwen's tokenizer has it, and no text here
NUM_STEPS = 150
TEXTS = [
    "a small animal that lives in water",
    "used for cutting wood",
    "the sky on a clear day",
    "a person who writes books about animals",
]
ONE_HOT = SentenceVector(torch.eye(len(TEXTS)))


@pytest.fixture(scope="module")
def trained(load_tiny: Callable[[str], Backbone]) -> LatentBridge:
    """A bridge that says one of a few sentences by its vector, and fills in what is masked in it."""
    backbone = load_tiny("wedlm")
    torch.manual_seed(0)
    freed = {"freeze_backbone": False, "freeze_lm_head": False, "lora": LoraConfig(rank=0)}
    settings = ModelConfig(num_prefix_tokens=2, prefix_hidden=16, **freed)
    bridge = LatentBridge(backbone, settings, len(TEXTS))
    ids = backbone.tokenize(TEXTS, 99)
    longest = max(map(len, ids)) + 1
    tokens = torch.tensor([row + [backbone.end_id] * (longest - len(row)) for row in ids])
    optimizer = torch.optim.AdamW([weight for weight in bridge.parameters() if weight.requires_grad], lr=7e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=NUM_STEPS)
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = masked_loss(bridge, tokens) + bridge.token_losses(ONE_HOT.values, ids)[0].mean()
        loss.backward()
        optimizer.step()
        decay.step()
    return bridge.eval()


def masked_loss(bridge: LatentBridge, tokens: Tensor) -> Tensor:
    """Cross-entropy of tokens masked at random, known ones standing before them, three patterns for each text."""
    vectors, tokens = ONE_HOT.values.repeat(3, 1), tokens.repeat(3, 1)
    masked = torch.rand(tokens.shape) < torch.rand(len(tokens), 1).clamp_min(0.3)
    masked[:, 0] |= ~masked.any(1)
    order = masked.long().argsort(dim=1, stable=True)
    read = tokens.masked_fill(masked, mask_id(bridge.backbone, MASK)).gather(1, order)
    prefix = bridge.prefix(vectors)
    embeddings = torch.cat([prefix, bridge.backbone.embedding(read)], dim=1)
    first = torch.arange(prefix.shape[1]).expand(len(tokens), -1)
    states = bridge.backbone.decoder(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
        position_ids=torch.cat([first, prefix.shape[1] + order], dim=1),
        use_cache=False,
    ).last_hidden_state[:, prefix.shape[1] :]
    chosen = masked.gather(1, order)
    targets = tokens.gather(1, order)[chosen]
    return linear_cross_entropy(states[chosen], bridge.backbone.output_weight, targets)[0].mean()


def test_windows_give_the_greedy_texts_in_fewer_passes(trained: LatentBridge) -> None:
    greedy = [texts[0] for texts in decode(trained, ONE_HOT, DecodingConfig())]
    assert greedy == TEXTS, "the test needs a model that has learned its sentences"
    found = decode_in_windows(trained, ONE_HOT, WindowConfig(mask_token=MASK, window=8))
    assert found.texts == greedy
    assert all(2 * passes <= tokens for passes, tokens in zip(found.num_passes, found.num_tokens, strict=True))


@pytest.mark.parametrize("settings", [{"window": 1}, {"entropy_threshold": 0.0}])
def test_a_window_of_one_or_a_threshold_of_zero_fills_one_token_a_pass(trained: LatentBridge, settings: dict) -> None:
    found = decode_in_windows(trained, ONE_HOT, WindowConfig(mask_token=MASK, position_penalty=9.0, **settings))
    assert found.num_passes == found.num_tokens
    assert found.texts == TEXTS


def test_a_text_goes_on_from_its_prompt(trained: LatentBridge) -> None:
    prompts = [text[: len(text) // 2] for text in TEXTS]
    config = WindowConfig(mask_token=MASK)
    found = decode_in_windows(trained, ONE_HOT, config, prompts=prompts)
    assert all(text.startswith(prompt) for text, prompt in zip(found.texts, prompts, strict=True))
    assert max(found.num_tokens) < max(decode_in_windows(trained, ONE_HOT, config).num_tokens)


def test_drawn_windows_are_those_of_the_generator(trained: LatentBridge) -> None:
    config = WindowConfig(mask_token=MASK, mode="sample", temperature=3.0, top_p=1.0, max_new_tokens=9)
    texts = [
        decode_in_windows(trained, ONE_HOT, config, torch.Generator().manual_seed(seed)).texts for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def states_by_definition(bridge: LatentBridge, prefix: Tensor, tokens: list[int | None], mask: int) -> Tensor:
    """States of all positions in the order of the text: which one sees which other is said by a mask of attention."""
    num_first = prefix.shape[1]
    ids = torch.tensor([[mask if token is None else token for token in tokens]])
    embeddings = torch.cat([prefix, bridge.backbone.embedding(ids)], dim=1)
    is_mask = torch.tensor([False] * num_first + [token is None for token in tokens])
    place = torch.arange(len(is_mask))
    seen = torch.where(is_mask[:, None], ~is_mask | (place <= place[:, None]), ~is_mask & (place <= place[:, None]))
    return bridge.backbone.decoder(
        inputs_embeds=embeddings,
        attention_mask=torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[None, None],
        position_ids=place[None],
        use_cache=False,
    ).last_hidden_state[0, num_first:]


@pytest.mark.parametrize("kind", ["llama", "wedlm", "wedlm_7b"])
@torch.no_grad()
def test_reading_known_tokens_first_is_letting_every_mask_see_them(
    kind: str, load_tiny: Callable[[str], Backbone]
) -> None:
    torch.manual_seed(0)
    bridge = LatentBridge(load_tiny(kind), ModelConfig(lora=LoraConfig(rank=0)), 4)
    prefix = bridge.prefix(torch.ones(1, 4))
    window = Window(0, 99, [7, None, 11, None, None, 13])
    order = window.order()
    assert order == [0, 2, 5, 1, 3, 4]
    ids = torch.tensor([[5 if (token := window.tokens[place]) is None else token for place in order]])
    positions = torch.tensor(order) + prefix.shape[1]
    found = read_reordered(bridge, prefix, ids, positions, DynamicCache())
    expected = states_by_definition(bridge, prefix, window.tokens, 5)[order]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def fill_by_definition(bridge: LatentBridge, vector: Tensor, config: WindowConfig) -> tuple[str, int]:
    """A text filled in windows with all states computed anew in each pass, and the passes."""
    backbone, mask = bridge.backbone, mask_id(bridge.backbone, config.mask_token)
    tokens: list[int | None] = [None] * config.max_new_tokens
    num_passes = 0
    while None in tokens:
        start = tokens.index(None)
        states = states_by_definition(bridge, bridge.prefix(vector[None]), tokens[: start + config.window], mask)
        logits = states @ backbone.output_weight.T
        logits[:, mask] = -torch.inf
        doubt = entropy(logits) + config.position_penalty * (torch.arange(len(states)) - start)
        masks = [place for place, token in enumerate(tokens[: len(states)]) if token is None]
        surest = [place for place in masks if doubt[place] < config.entropy_threshold]
        for place in surest or [min(masks, key=lambda place: float(doubt[place]))]:
            tokens[place] = int(logits[place].argmax())
        if backbone.end_id in tokens:
            del tokens[tokens.index(backbone.end_id) + 1 :]
        num_passes += 1
    return backbone.text([token for token in tokens if token is not None]), num_passes


@pytest.mark.parametrize(("threshold", "penalty"), [(5.7, 0.02), (5.8, 0.05), (0.0, 0.0)])
def test_the_cache_changes_no_token(load_tiny: Callable[[str], Backbone], threshold: float, penalty: float) -> None:
    torch.manual_seed(0)
    bridge = LatentBridge(load_tiny("wedlm"), ModelConfig(lora=LoraConfig(rank=0)), 4)
    config = WindowConfig(
        mask_token=MASK, window=5, entropy_threshold=threshold, position_penalty=penalty, max_new_tokens=17
    )
    vectors = SentenceVector(torch.randn(3, 4, generator=torch.Generator().manual_seed(2)))
    found = decode_in_windows(bridge, vectors, config)
    expected = [fill_by_definition(bridge, vector, config) for vector in vectors.values]
    assert list(zip(found.texts, found.num_passes, strict=True)) == expected
    assert threshold == 0 or min(found.num_passes) < min(found.num_tokens), "the test needs tokens filled together"


def test_masks_are_added_for_what_is_done_up_to_the_limit() -> None:
    window = Window(0, 7)
    window.refill(3)
    assert window.tokens == [None] * 3
    window.fill([0, 2], [4, 5], end_id=1)
    window.refill(3)
    assert window.tokens == [4, None, 5, None]
    assert window.slide() == [4]
    window.fill([0], [6], end_id=1)
    assert window.slide() == [6, 5]
    window.refill(9)
    assert (window.start, window.tokens) == (3, [None] * 4)
    window.fill([2], [1], end_id=1)
    assert (window.limit, window.tokens) == (6, [None, None, 1])


def test_the_mask_token_is_found_or_asked_for(tiny_backbone: Backbone, load_tiny: Callable[[str], Backbone]) -> None:
    with pytest.raises(ConfigError, match="has no mask token, so it cannot fill in several tokens at a time"):
        mask_id(tiny_backbone)
    with pytest.raises(ConfigError, match=r"mask_token = '<mask>' is no token of .*; give one of its vocabulary"):
        mask_id(tiny_backbone, "<mask>")
    backbone = load_tiny("wedlm")
    assert mask_id(backbone, MASK) == backbone.tokenizer.get_vocab()[MASK]
    backbone.model.config.mask_token_id = 17
    assert mask_id(backbone) == 17
