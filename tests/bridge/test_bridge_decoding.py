"""Texts are those that the backbone finds likely after the prefix, whatever they are batched with."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentloom.bridge.backbone import Backbone
from latentloom.bridge.config import LoraConfig, ModelConfig
from latentloom.bridge.decoding import DecodingConfig, continue_tokens, decode, prompt_tokens, with_prompts
from latentloom.bridge.model import LatentBridge
from latentloom.bridge.rerank import decode_best_of, rerank
from latentloom.bridge.token_choice import draw, entropy, without_repeats
from latentloom.errors import ConfigError, ShapeError
from latentloom.tensors import SentenceVector

DIM = 6
PROMPTS = ["", "a small animal", "to make something larger or more", "the", ""]


def make_bridge(backbone: Backbone, **settings) -> LatentBridge:
    """A random bridge whose backbone ends texts often."""
    torch.manual_seed(0)
    backbone.output_weight.data[backbone.end_id] *= 1.7
    settings = {"num_prefix_tokens": 3, "lora": LoraConfig(rank=0)} | settings
    return LatentBridge(backbone, ModelConfig(**settings), DIM)


@pytest.fixture
def bridge(tiny_backbone: Backbone) -> LatentBridge:
    return make_bridge(tiny_backbone)


@pytest.fixture
def vectors() -> SentenceVector:
    return SentenceVector(torch.randn(5, DIM, generator=torch.Generator().manual_seed(1)))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def greedy_by_hand(bridge: LatentBridge, vector: torch.Tensor, prompt: str, num_tokens: int) -> str:
    """The text of one vector with every token's states computed anew, without a cache."""
    backbone = bridge.backbone
    ids = list(backbone.tokenize([prompt], 99)[0])
    prefix = bridge.prefix(vector[None])
    for _ in range(num_tokens):
        read = torch.cat([prefix, backbone.embedding(torch.tensor([ids], dtype=torch.long))], dim=1)
        states = backbone.decoder(inputs_embeds=read, use_cache=False).last_hidden_state[0, -1]
        ids.append(int((backbone.output_weight @ states).argmax()))
        if ids[-1] == backbone.end_id:
            break
    return backbone.text(ids)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "wedlm"])
@torch.no_grad()
def test_greedy_texts_are_the_likeliest_tokens_of_a_full_recomputation(
    kind: str, load_tiny: Callable[[str], Backbone], vectors: SentenceVector
) -> None:
    bridge = make_bridge(load_tiny(kind))
    found = decode(bridge, vectors, DecodingConfig(max_new_tokens=12), prompts=PROMPTS)
    expected = [greedy_by_hand(bridge, *pair, 12) for pair in zip(vectors.values, PROMPTS, strict=True)]
    assert [texts[0] for texts in found] == expected
    assert all(text.startswith(prompt) for text, prompt in zip(expected, PROMPTS, strict=True))


@torch.no_grad()
def test_texts_that_end_leave_the_batch_and_the_others_go_on(bridge: LatentBridge) -> None:
    many = SentenceVector(torch.randn(24, DIM, generator=seeded(3)))
    config = DecodingConfig(max_new_tokens=20)
    widths = []
    watch = bridge.backbone.decoder.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    rows = continue_tokens(bridge, *with_prompts(bridge, bridge.prefix(many.values), [[]] * 24), config, None)
    watch.remove()
    lengths = [len(row) for row in rows]
    assert len(set(lengths)) > 2, "the test needs texts of several lengths"
    assert all(row[-1] == bridge.backbone.end_id for row in rows if len(row) < 20)
    assert sum(widths) == sum(lengths)


def test_draws_are_those_of_the_generator_and_not_of_the_batch(bridge: LatentBridge, vectors: SentenceVector) -> None:
    config = DecodingConfig(mode="sample", num_samples=3, temperature=1.0, max_new_tokens=8)
    texts = decode(bridge, vectors, config, seeded(), prompts=PROMPTS)
    alone = config.model_copy(update={"batch_size": 1})
    assert decode(bridge, vectors, alone, seeded(), prompts=PROMPTS) == texts
    assert decode(bridge, vectors, config, seeded(1), prompts=PROMPTS) != texts
    assert [len(drawn) for drawn in texts] == [3] * 5
    assert len({text for drawn in texts for text in drawn}) > 5
    assert decode(bridge, vectors[:2], config, seeded(), prompts=PROMPTS[:2]) == texts[:2]


def test_a_low_temperature_draws_the_greedy_text(bridge: LatentBridge, vectors: SentenceVector) -> None:
    greedy = decode(bridge, vectors, DecodingConfig(max_new_tokens=8))
    cold = DecodingConfig(mode="sample", temperature=1e-3, max_new_tokens=8)
    assert decode(bridge, vectors, cold, seeded()) == greedy


def test_without_a_vector_there_is_one_text_that_of_the_mean_vector(bridge: LatentBridge) -> None:
    bridge.standardizer.fit(torch.arange(DIM).float(), torch.full((DIM,), 2.0))
    config = DecodingConfig(max_new_tokens=8)
    assert decode(bridge, None, config) == decode(bridge, SentenceVector(torch.arange(DIM).float()[None]), config)


def test_decoding_leaves_dropout_off_and_modes_as_they_were(tiny_backbone: Backbone, vectors: SentenceVector) -> None:
    bridge = make_bridge(tiny_backbone, lora=LoraConfig(rank=2, dropout=0.9))
    for name, parameter in bridge.network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(generator=seeded())
    bridge.train()
    modes = [module.training for module in bridge.modules()]
    texts = [decode(bridge, vectors, DecodingConfig(max_new_tokens=8)) for _ in range(2)]
    assert texts[0] == texts[1]
    assert [module.training for module in bridge.modules()] == modes


def test_layers_trained_in_float32_are_read_beside_frozen_ones_in_bfloat16(
    tiny_backbone: Backbone, vectors: SentenceVector
) -> None:
    tiny_backbone.model.to(torch.bfloat16)
    bridge = make_bridge(tiny_backbone, unfreeze_layers=1)
    assert {parameter.dtype for parameter in bridge.network.parameters()} == {torch.float32, torch.bfloat16}
    assert len(decode(bridge, vectors, DecodingConfig(max_new_tokens=4))) == 5


def test_no_run_of_tokens_occurs_twice_when_that_is_forbidden(bridge: LatentBridge, vectors: SentenceVector) -> None:
    def repeats(size: int) -> int:
        config = DecodingConfig(max_new_tokens=40, no_repeat_ngram=size)
        rows = continue_tokens(bridge, *with_prompts(bridge, bridge.prefix(vectors.values), [[]] * 5), config, None)
        return sum(count_repeats(row, 2) for row in rows)

    bridge.backbone.output_weight.data[bridge.backbone.end_id] *= -1  # texts that go on, and go round
    assert repeats(0) > 0
    assert repeats(2) == 0


def count_repeats(row: Sequence[int], size: int) -> int:
    runs = [tuple(row[start : start + size]) for start in range(len(row) - size + 1)]
    return len(runs) - len(set(runs))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_exactly_the_tokens_that_would_repeat_a_run_are_forbidden(size: int) -> None:
    tokens = torch.tensor([[0, 1, 2, 0, 1], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]])
    forbidden = without_repeats(torch.zeros(3, 6), tokens, size).isinf()
    for row, found in zip(tokens.tolist(), forbidden.tolist(), strict=True):
        assert found == [count_repeats([*row, token], size) > count_repeats(row, size) for token in range(6)]


@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.sampled_from([None, 1, 3, 700]), st.floats(0.3, 2.0))
def test_drawn_tokens_follow_the_cut_distribution(seed: int, top_p: float, top_k: int | None, heat: float) -> None:
    logits = torch.randn(1, 700, generator=seeded(seed)) * 2
    numbers = (torch.arange(1000) + 0.5) / 1000
    tokens = draw(logits.expand(1000, -1), numbers, heat, top_p, top_k)
    shares = torch.bincount(tokens, minlength=700) / 1000
    assert (shares - cut_distribution(logits[0], heat, top_p, top_k)).abs().max() < 1.5 / 1000


def cut_distribution(logits: torch.Tensor, heat: float, top_p: float, top_k: int | None) -> torch.Tensor:
    """What is drawn from, by transformers' own warpers."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList([TemperatureLogitsWarper(heat)])
    if top_k is not None:
        warpers.append(TopKLogitsWarper(top_k))
    warpers.append(TopPLogitsWarper(top_p))
    return warpers(torch.LongTensor([[0]]), torch.FloatTensor(logits[None]))[0].softmax(-1)


@given(st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=1, max_size=6))
def test_even_the_largest_numbers_draw_a_token_that_is_allowed(values: list[float]) -> None:
    values = [*values, 1 - 2**-24]
    logits = torch.full((len(values), 9), -torch.inf)
    logits[:, 2:4] = 0.0
    for top_p in (1.0, 0.4):
        tokens = draw(logits, torch.tensor(values), 1.0, top_p)
        assert set(tokens.tolist()) <= ({2, 3} if top_p == 1 else {2})


def test_entropy_is_zero_when_certain_and_the_logarithm_when_even() -> None:
    certain = torch.tensor([0.0, -torch.inf, -torch.inf])
    found = entropy(torch.stack([certain, torch.zeros(3)]))
    torch.testing.assert_close(found, torch.tensor([0.0, 3.0]).clamp_min(1).log())


class SelfEncoder:
    """Gives every text a vector by its length, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> SentenceVector:
        self.asked += texts
        return SentenceVector(torch.tensor([[len(text), 1.0] for text in texts]))


def test_the_candidate_of_the_largest_cosine_is_kept() -> None:
    encoder = SelfEncoder()
    wanted = SentenceVector(torch.tensor([[3.0, 1.0], [10.0, 10.0]]))
    best = rerank(wanted, [["a", "abc", "abcdefgh"], ["abc", "a", "abc"]], encoder)
    assert best.texts == ["abc", "a"]
    torch.testing.assert_close(best.cosines, torch.ones(2))
    assert best.candidate_cosines.shape == (2, 3)
    assert best.candidate_cosines[0, 0] == pytest.approx(4 / (10 * 2) ** 0.5)
    assert encoder.asked == ["a", "abc", "abcdefgh"]


def test_best_of_n_draws_n_texts_and_is_at_least_as_near_as_each(bridge: LatentBridge, vectors: SentenceVector) -> None:
    config = DecodingConfig(mode="sample", num_samples=4, temperature=1.5, max_new_tokens=6)
    best = decode_best_of(bridge, vectors, bridge, config, seeded(), prompts="a")
    assert best.candidates == decode(bridge, vectors, config, seeded(), prompts="a")
    torch.testing.assert_close(best.cosines, best.candidate_cosines.max(dim=1).values)
    torch.testing.assert_close(vectors.cosine(bridge.encode(best.texts)), best.cosines)


def test_what_cannot_be_decoded_is_refused(bridge: LatentBridge, vectors: SentenceVector) -> None:
    with pytest.raises(ShapeError, match="vectors of 5 channels; this bridge was made for 6"):
        decode(bridge, SentenceVector(torch.zeros(1, 5)))
    with pytest.raises(ShapeError, match="2 prompts for 5 vectors"):
        prompt_tokens(bridge, ["a", "b"], 5)
    with pytest.raises(ConfigError, match="give a generator"):
        decode(bridge, vectors, DecodingConfig(mode="sample"))
    with pytest.raises(ValueError, match="greedy makes one text per vector, not 8"):
        DecodingConfig(num_samples=8)
    with pytest.raises(ShapeError, match="makes vectors of 2 channels, and these have 6"):
        rerank(vectors, [["a"]] * 5, SelfEncoder())
    with pytest.raises(ShapeError, match="give as many for each"):
        rerank(vectors, [["a"]] * 4, SelfEncoder())
