"""What a bridge says and reads is what its backbone does by hand, whoever shares the batch."""

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_backbones import HIDDEN, SENTENCES, VOCABULARY, tiny_tokenizer
from torch import Tensor

from latentloom.bridge.backbone import Backbone, load_backbone
from latentloom.bridge.config import ModelConfig
from latentloom.bridge.model import LatentBridge
from latentloom.errors import ConfigError, PromptError, ShapeError

KINDS = ("llama", "qwen2", "qwen3")
DIM = 10
LAYERS = (1, 3)
SMALL = {"num_prefix_tokens": 2, "prefix_hidden": 12, "encoder_hidden": 14, "encoder_layers": LAYERS}
NO_ADAPTER = {**SMALL, "lora": {"rank": 0}}
Load = Callable[[str], Backbone]


def bridge_on(backbone: Backbone, settings: dict = NO_ADAPTER) -> LatentBridge:
    """A bridge with random weights, whose vectors have means and deviations of their own."""
    torch.manual_seed(0)
    bridge = LatentBridge(backbone, ModelConfig.model_validate(settings), DIM).eval()
    bridge.standardizer.fit(torch.randn(DIM), torch.rand(DIM) + 0.5)
    features = len(bridge.layers) * HIDDEN
    bridge.text_to_latent.features.fit(torch.randn(features), torch.rand(features) + 0.5)
    return bridge


@pytest.fixture(scope="module", params=KINDS)
def bridge(request: pytest.FixtureRequest, load_tiny: Load) -> LatentBridge:
    return bridge_on(load_tiny(request.param))


@pytest.fixture(scope="module")
def llama(load_tiny: Load) -> LatentBridge:
    return bridge_on(load_tiny("llama"))


@pytest.fixture(scope="module")
def half(backbone_folder: Callable) -> Callable[[dict], LatentBridge]:
    """Bridges on a backbone in bfloat16."""

    def make(settings: dict) -> LatentBridge:
        config = ModelConfig(pretrained_model_name_or_path=str(backbone_folder("qwen3")))
        return bridge_on(load_backbone(config, device=torch.device("cpu"), dtype=torch.bfloat16), settings)

    return make


def some_vectors(num: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed)) + 0.3


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def read_by_hand(bridge: LatentBridge, vector: Tensor, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Loss and hit of each of a text's tokens and of its end, from the whole model's logits on one row."""
    backbone = bridge.backbone
    standardized = (vector - bridge.standardizer.mean) / bridge.standardizer.std
    prefix = bridge.latent_prefix(standardized[None])
    tokens = backbone.embedding(torch.tensor([[backbone.sink_id, *ids]]))
    logits = backbone.model(inputs_embeds=torch.cat([tokens[:, :1], prefix, tokens[:, 1:]], 1)).logits[0]
    targets = torch.tensor([*ids, backbone.end_id])
    predicting = logits[prefix.shape[1] :]  # from the last embedding of the prefix to the last token
    return F.cross_entropy(predicting, targets, reduction="none"), predicting.argmax(-1) == targets


@torch.no_grad()
def test_a_text_is_predicted_from_its_first_token_to_its_end(bridge: LatentBridge):
    ids, vectors = bridge.tokenize(SENTENCES[:4]), some_vectors(4)
    found = bridge.text_losses(vectors, ids)
    every, hits, owners = bridge.token_losses(vectors, ids)
    assert found.num_tokens.tolist() == [len(row) + 1 for row in ids]
    for row, text in enumerate(ids):
        losses, right = read_by_hand(bridge, vectors[row], text)
        close(every[owners == row], losses)
        assert torch.equal(hits[owners == row], right)
        close(found.loss[row], losses.mean())
        assert int(found.num_correct[row]) == int(right.sum())


@torch.no_grad()
def test_texts_are_pooled_over_their_tokens_without_the_sink_and_padding(bridge: LatentBridge):
    ids, backbone = bridge.tokenize(SENTENCES[:4]), bridge.backbone
    assert len({len(row) for row in ids}) > 1
    pooled = bridge.pool(ids)
    assert pooled.shape == (4, len(LAYERS) * HIDDEN)
    for row, text in enumerate(ids):
        tokens = torch.tensor([[backbone.sink_id, *text]])
        states = backbone.model(input_ids=tokens, output_hidden_states=True).hidden_states
        close(pooled[row], torch.cat([states[layer][0, 1:].mean(0) for layer in LAYERS]))
    mean, std = bridge.standardizer.mean, bridge.standardizer.std
    close(bridge.encode(SENTENCES[:4]).values, bridge.text_to_latent(pooled) * std + mean)


@torch.no_grad()
def test_without_a_sink_all_of_a_text_is_pooled_and_the_prefix_comes_first(load_tiny: Load):
    bridge = bridge_on(load_tiny("llama"), {**NO_ADAPTER, "attention_sink": False})
    (ids,) = bridge.tokenize(SENTENCES[:1])
    states = bridge.backbone.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    close(bridge.pool([ids])[0], torch.cat([states[layer][0].mean(0) for layer in LAYERS]))
    assert (bridge.num_before_text, bridge.prefix(None).shape) == (2, (1, 2, HIDDEN))
    embeddings = torch.cat([bridge.prefix(some_vectors(1)), bridge.backbone.embedding(torch.tensor([ids]))], 1)
    logits = bridge.backbone.model(inputs_embeds=embeddings).logits[0, 1:]
    expected = F.cross_entropy(logits, torch.tensor([*ids, bridge.backbone.end_id]))
    close(bridge.text_losses(some_vectors(1), [ids]).loss[0], expected)


TEXTS = st.lists(st.lists(st.integers(3, 300), min_size=1, max_size=70), min_size=1, max_size=5)


@settings(max_examples=12)
@given(ids=TEXTS)
@torch.no_grad()
def test_batch_mates_and_their_lengths_change_nothing(llama: LatentBridge, ids: list[list[int]]):
    vectors = some_vectors(len(ids))
    losses, _, owners = llama.token_losses(vectors, ids)
    together, pooled = llama.text_losses(vectors, ids), llama.pool(ids)
    for row, text in enumerate(ids):
        alone = llama.token_losses(vectors[row : row + 1], [text])[0]
        close(losses[owners == row], alone)
        close(together.loss[row], alone.mean())
        close(pooled[row], llama.pool([text])[0])


@torch.no_grad()
def test_batches_of_any_size_encode_alike_and_in_order(bridge: LatentBridge):
    texts = [*SENTENCES, "a", SENTENCES[0] + " " + SENTENCES[1]]
    alone = torch.cat([bridge.encode([text]).values for text in texts])
    for batch_tokens in (1, 40, 4096):
        close(bridge.encode(texts, batch_tokens).values, alone)
    assert (alone[:, None] - alone).abs().amax(-1).fill_diagonal_(1).min() > 1e-3  # no two of them alike


@torch.no_grad()
def test_saying_nothing_is_saying_the_mean_vector(bridge: LatentBridge):
    ids = bridge.tokenize(SENTENCES[:3])
    mean = bridge.standardizer.mean.expand(3, DIM)
    assert torch.equal(bridge.prefix(None, 3), bridge.prefix(mean))
    nothing = bridge.text_losses(None, ids)
    close(nothing.loss, bridge.text_losses(mean, ids).loss)
    vectors, dropped = some_vectors(3), torch.tensor([True, False, True])
    losses, _, owners = bridge.token_losses(vectors, ids, dropped)
    said = bridge.text_losses(vectors, ids).loss
    assert float((said - nothing.loss).abs().min()) > 1e-3
    for row, (is_dropped, with_it, without) in enumerate(zip(dropped, said, nothing.loss, strict=True)):
        close(losses[owners == row].mean(), without if is_dropped else with_it)


@torch.no_grad()
def test_a_text_of_one_token_in_a_batch_of_one(bridge: LatentBridge):
    found = bridge.text_losses(some_vectors(1), [[7]])
    assert found.num_tokens.tolist() == [2]
    close(found.loss[0], read_by_hand(bridge, some_vectors(1)[0], [7])[0].mean())
    assert bridge.pool([[7]]).isfinite().all()


@torch.no_grad()
def test_a_text_that_fills_the_length_has_no_end_to_predict(load_tiny: Load):
    cut = bridge_on(load_tiny("llama"), {**NO_ADAPTER, "max_seq_len": 5})
    whole = bridge_on(load_tiny("llama"))
    ids = cut.tokenize([SENTENCES[0], "a"])
    assert [len(row) for row in ids] == [5, 1]
    found = cut.text_losses(some_vectors(2), ids)
    assert found.num_tokens.tolist() == [5, 2] == [cut.num_targets(row) for row in ids]
    close(found.loss[0], whole.token_losses(some_vectors(2)[:1], ids[:1])[0][:5].mean())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@torch.no_grad()
def test_vectors_of_other_precisions_are_read_in_float32(llama: LatentBridge, dtype: torch.dtype):
    vectors = some_vectors(3).to(dtype)
    found = llama.prefix(vectors)
    assert found.dtype == torch.float32
    assert torch.equal(found, llama.prefix(vectors.float()))


def test_a_vector_of_another_width_is_refused_with_both_numbers(llama: LatentBridge):
    with pytest.raises(ShapeError, match=rf"7 channels.*{DIM}"):
        llama.prefix(torch.zeros(2, 7))
    with pytest.raises(ShapeError, match=rf"7 channels.*{DIM}"):
        llama.text_losses(torch.zeros(1, 7), [[5]])


def test_a_text_without_a_word_is_refused_by_its_number(llama: LatentBridge):
    with pytest.raises(PromptError, match="text 1 is empty"):
        llama.encode(["a", "", "b"])
    with pytest.raises(PromptError, match="no text"):
        llama.encode([])


def test_layers_that_the_backbone_lacks_are_refused(load_tiny: Load):
    with pytest.raises(ConfigError, match=r"\[1, 9\].*layers 1 to 3"):
        bridge_on(load_tiny("llama"), {**NO_ADAPTER, "encoder_layers": (1, 9)})


@torch.no_grad()
def test_prefix_embeddings_start_at_the_size_of_the_backbones_own(bridge: LatentBridge):
    own = bridge.backbone.embedding.weight.square().mean().sqrt()
    for vectors in (some_vectors(4), 100 * some_vectors(4), None):
        embeddings = bridge.prefix(vectors, 4)
        assert embeddings.shape == (4, 3, HIDDEN)
        sink = bridge.backbone.embedding(torch.tensor(bridge.backbone.sink_id))
        assert torch.equal(embeddings[:, 0], sink.expand(4, HIDDEN))
        sizes = embeddings[:, 1:].square().mean(-1).sqrt()
        torch.testing.assert_close(sizes, own.expand(4, 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("says_nothing", [False, True])
def test_gradients_through_the_backbone_are_numbers_at_the_start(bridge: LatentBridge, says_nothing: bool):
    # a zero output layer would be divided by nothing in the first norm, and that multiplied in each one after it
    vectors = None if says_nothing else some_vectors(3)
    loss = bridge.token_losses(vectors, bridge.tokenize(SENTENCES[:3]))[0].mean()
    weights = dict(bridge.latent_prefix.named_parameters())
    for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() < 100, name
        if not (says_nothing and name == "project.0.weight"):  # its input is zero then
            assert gradient.abs().max() > 0, name
    assert weights["project.2.weight"].abs().max() > 0


@torch.no_grad()
def test_heads_compute_in_float32_under_autocast(half: Callable[[dict], LatentBridge]):
    bridge = half(NO_ADAPTER)
    features, vectors, ids = torch.randn(3, len(LAYERS) * HIDDEN), some_vectors(3), bridge.tokenize(SENTENCES[:3])
    predicted, prefix = bridge.predict(features), bridge.prefix(vectors)
    with bridge.computing():
        assert torch.is_autocast_enabled("cpu")
        assert torch.equal(bridge.predict(features), predicted)
        assert torch.equal(bridge.prefix(vectors), prefix)
        assert bridge.pool(ids).dtype == torch.float32
        assert bridge.token_losses(vectors, ids)[0].dtype == torch.float32
    assert (predicted.dtype, prefix.dtype) == (torch.float32, torch.bfloat16)
    by_hand = bridge.latent_prefix(bridge.standardizer(vectors)).bfloat16()
    assert torch.equal(prefix[:, 1:], by_hand)
    assert bridge.encode(SENTENCES[:2]).values.dtype == torch.float32


@pytest.mark.parametrize(
    "model",
    [
        {"lora": {"rank": 2}},
        {"lora": {"rank": 0}, "unfreeze_layers": 1, "freeze_lm_head": False},
    ],
)
def test_trained_weights_are_in_float32_and_small_steps_move_them(model: dict, half: Callable[[dict], LatentBridge]):
    bridge = half({**SMALL, **model})
    trained = {name: weight for name, weight in bridge.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert any(weight.dtype == torch.bfloat16 for weight in bridge.parameters())
    before = {name: weight.detach().clone() for name, weight in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5, weight_decay=0.0)
    ids, vectors = bridge.tokenize(SENTENCES[:3]), some_vectors(3)
    for _ in range(2):  # the half of an adapter that starts at zero holds the other one back for a step
        optimizer.zero_grad()
        with bridge.computing():
            loss = bridge.token_losses(vectors, ids)[0].mean() + bridge.predict(bridge.pool(ids)).square().mean()
        loss.backward()
        optimizer.step()
    assert not [name for name, weight in trained.items() if torch.equal(weight, before[name])]


@torch.no_grad()
def test_texts_are_pooled_without_the_adapter_unless_it_encodes(load_tiny: Load):
    untouched = bridge_on(load_tiny("qwen2"))
    ids, vectors = untouched.tokenize(SENTENCES[:3]), some_vectors(3)
    for encodes in (False, True):
        bridge = bridge_on(load_tiny("qwen2"), {**SMALL, "lora": {"rank": 2, "encode": encodes}})
        bridge.latent_prefix.load_state_dict(untouched.latent_prefix.state_dict())
        bridge.standardizer.load_state_dict(untouched.standardizer.state_dict())
        started = bridge.text_losses(vectors, ids).loss
        close(started, untouched.text_losses(vectors, ids).loss)  # an adapter starts as none
        for name, weight in bridge.network.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
        trained = [name for name, weight in bridge.named_parameters() if weight.requires_grad]
        is_same = torch.allclose(bridge.pool(ids), untouched.pool(ids), rtol=1e-5, atol=1e-5)
        assert is_same == (not encodes)
        assert float((bridge.text_losses(vectors, ids).loss - started).abs().max()) > 1e-3
        assert trained == [name for name, weight in bridge.named_parameters() if weight.requires_grad]


@torch.no_grad()
def test_no_call_changes_the_vocabulary(load_tiny: Load):
    backbone = load_tiny("qwen3")
    size, table = len(backbone.tokenizer), backbone.embedding.weight.clone()
    assert size < VOCABULARY == backbone.vocab_size  # resizing to the tokenizer would shrink it
    bridge = bridge_on(backbone)
    bridge.text_losses(some_vectors(2), bridge.tokenize(SENTENCES[:2]))
    bridge.encode(SENTENCES[:2])
    assert size == len(backbone.tokenizer) == len(tiny_tokenizer(with_bos=False))
    assert backbone.vocab_size == len(backbone.output_weight) == backbone.model.config.vocab_size == VOCABULARY
    assert torch.equal(backbone.embedding.weight, table)
