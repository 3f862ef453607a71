"""Folding the padding rows into one changes neither the output nor any gradient."""

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latentloom.errors import ShapeError
from latentloom.tensors import TextEmbeddings
from latentloom.wan.folded_padding import PaddingFold, fold_padding

TEXT_DIM = 16


@pytest.fixture(scope="module")
def transformer() -> WanTransformer3DModel:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("attn2.norm_q.weight"):
                weight.fill_(3.0)  # attention that looks at some rows more than at others
            if name.endswith("attn2.to_out.0.weight"):
                weight.mul_(5.0)  # and that the output depends on
    return model.eval()


def texts(lengths: list[int], seed: int = 0) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(sum(lengths), TEXT_DIM, generator=generator), torch.tensor(lengths))


def predict(transformer: WanTransformer3DModel, context: Tensor) -> Tensor:
    """The transformer's velocity for latents that are the same in every call."""
    latents = torch.randn(len(context), 4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    timestep = torch.full((len(context),), 500)
    return transformer(latents, timestep, encoder_hidden_states=context, return_dict=False)[0]


def predict_folded(transformer: WanTransformer3DModel, embeddings: TextEmbeddings, max_length: int = 512) -> Tensor:
    with fold_padding(transformer, max_length) as fold:
        return predict(transformer, fold(embeddings))


@pytest.mark.parametrize("lengths", [[5], [0], [512], [0, 512], [7, 3, 0, 12], [511, 1], [0, 0]], ids=str)
@torch.no_grad()
def test_the_output_is_that_of_512_padded_rows(transformer, lengths):
    embeddings = texts(lengths)
    reference = predict(transformer, embeddings.padded(512))
    assert torch.allclose(predict_folded(transformer, embeddings), reference, atol=1e-5, rtol=0)


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(0, 24), min_size=1, max_size=4), seed=st.integers(0, 1000))
@torch.no_grad()
def test_the_output_is_that_of_padded_rows_for_any_lengths(transformer, lengths, seed):
    embeddings = texts(lengths, seed)
    reference = predict(transformer, embeddings.padded(24))
    assert torch.allclose(predict_folded(transformer, embeddings, 24), reference, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_padding_weighs_and_a_text_cut_short_would_not_do(transformer):
    embeddings = texts([5])
    reference = predict(transformer, embeddings.padded(512))
    assert (predict(transformer, embeddings.padded(5)) - reference).abs().max() > 1e-2
    assert (predict(transformer, embeddings.padded(6)) - reference).abs().max() > 1e-2


@torch.no_grad()
def test_the_context_has_one_row_more_than_the_longest_text(transformer):
    with fold_padding(transformer) as fold:
        assert fold(texts([7, 3, 0])).shape == (3, 8, TEXT_DIM)


def test_gradients_are_those_of_512_padded_rows(transformer):
    watched = [transformer.blocks[0].attn2.to_k.weight, transformer.condition_embedder.text_embedder.linear_1.bias]
    gradients = []
    for folded in (False, True):
        plain = texts([9, 0, 4])
        embeddings = TextEmbeddings(plain.tokens.requires_grad_(), plain.lengths)
        output = predict_folded(transformer, embeddings) if folded else predict(transformer, embeddings.padded(512))
        gradients.append(torch.autograd.grad(output.square().sum(), [embeddings.tokens, *watched]))
    for reference, ours in zip(*gradients, strict=True):
        assert reference.abs().max() > 1e-4
        assert (ours - reference).abs().max() < 5e-4 * reference.abs().max()


def test_the_processors_come_back_on_leaving_and_on_an_exception(transformer):
    before = [block.attn2.processor for block in transformer.blocks]
    with fold_padding(transformer):
        assert all(block.attn2.processor is not old for block, old in zip(transformer.blocks, before, strict=True))
    assert all(block.attn2.processor is old for block, old in zip(transformer.blocks, before, strict=True))
    with pytest.raises(KeyError), fold_padding(transformer):
        raise KeyError("stop")
    assert all(block.attn2.processor is old for block, old in zip(transformer.blocks, before, strict=True))


@torch.no_grad()
def test_self_attention_is_left_alone_and_the_transformer_is_as_before_afterwards(transformer):
    context = texts([4]).padded(512)
    before = predict(transformer, context)
    self_attention = [block.attn1.processor for block in transformer.blocks]
    with fold_padding(transformer):
        assert [block.attn1.processor for block in transformer.blocks] == self_attention
    assert torch.equal(predict(transformer, context), before)


@torch.no_grad()
def test_each_call_of_the_fold_replaces_the_one_before(transformer):
    first, second = texts([9, 2], seed=1), texts([1, 3], seed=2)
    with fold_padding(transformer) as fold:
        predict(transformer, fold(first))
        again = predict(transformer, fold(second))
    assert torch.equal(again, predict_folded(transformer, second))


def test_a_text_longer_than_the_padded_length_is_refused(transformer):
    with fold_padding(transformer) as fold, pytest.raises(ShapeError, match="513 rows does not fit into 512"):
        fold(texts([513]))
    with fold_padding(transformer, 8) as fold, pytest.raises(ShapeError, match="9 rows does not fit into 8"):
        fold(texts([2, 9]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_a_narrow_dtype_the_rows_of_padding_weigh_what_they_should(dtype):
    fold = PaddingFold(512, dtype)
    for length in range(0, 513):
        context = fold(texts([length]))
        assert fold.bias is not None
        assert fold.bias.dtype == dtype
        assert fold.bias.shape[-1] == context.shape[1] == length + 3
        assert fold.bias[..., length:].double().exp().sum().item() == pytest.approx(512 - length, rel=1e-5, abs=0)


@torch.no_grad()
def test_in_bfloat16_folding_is_no_further_from_the_truth_than_rounding_is(transformer):
    embeddings = texts([5, 12, 0])
    truth = predict(transformer, embeddings.padded(512))
    with torch.autocast("cpu", torch.bfloat16):
        padded = predict(transformer, embeddings.padded(512))
        with fold_padding(transformer) as fold:
            fold.dtype = torch.bfloat16
            folded = predict(transformer, fold(embeddings))
    assert (folded - truth).abs().mean() < 1.1 * (padded - truth).abs().mean()
