"""What cross-attention reads of a prompt, and how it shares its attention among the rows."""

from pathlib import Path
from typing import cast

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanTransformer3DModel
from hypothesis import given, settings
from hypothesis import strategies as st

from latentloom.errors import ConfigError, ShapeError
from latentloom.steering import projection
from latentloom.steering.projection import attention_mass, pad_vector, project, text_rows
from latentloom.tensors import TextEmbeddings
from latentloom.wan.pipeline import WanPipeline

TEXT_DIM, DIM = 16, 24  # of the tiny checkpoint


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint: Path) -> WanPipeline:
    return WanPipeline.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def transformer(pipeline: WanPipeline) -> WanTransformer3DModel:
    return pipeline.transformer


def texts(*lengths: int, seed: int = 0) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    return TextEmbeddings(torch.randn(sum(lengths), TEXT_DIM, generator=generator), torch.tensor(lengths))


def attention(transformer: WanTransformer3DModel) -> WanAttention:
    return cast(WanAttention, transformer.blocks[1].get_submodule("attn2"))


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_projecting_works_on_each_row_alone(transformer, lengths, seed):
    text = texts(*lengths, seed=seed)
    together = project(transformer, text)
    assert together.lengths.tolist() == lengths
    assert together.tokens.shape == (sum(lengths), DIM)
    alone = [project(transformer, texts_of_one(row)).tokens for row in text.tokens]
    assert torch.allclose(together.tokens, torch.cat([together.tokens[:0], *alone]), atol=1e-6)


def texts_of_one(row: torch.Tensor) -> TextEmbeddings:
    return TextEmbeddings(row[None], torch.tensor([1]))


def test_a_row_of_zeros_becomes_the_pad_vector(transformer):
    zero = project(transformer, TextEmbeddings(torch.zeros(2, TEXT_DIM), torch.tensor([2])))
    assert torch.allclose(zero.tokens, pad_vector(transformer).expand(2, -1), atol=1e-7)
    assert pad_vector(transformer).shape == (DIM,)
    padded = text_rows(transformer, texts(3), folded=False)
    assert torch.allclose(padded.rows[0, 3:], pad_vector(transformer).expand(509, -1), atol=1e-6)


def test_the_dtype_comes_back_and_gradients_reach_the_tokens_that_ask_for_them(transformer):
    text = texts(2, 3)
    assert not project(transformer, text).tokens.requires_grad
    assert project(transformer, text.to(dtype=torch.bfloat16)).dtype == torch.bfloat16
    learned = TextEmbeddings(text.tokens.clone().requires_grad_(), text.lengths)
    (gradient,) = torch.autograd.grad(project(transformer, learned).tokens.square().sum(), [learned.tokens])
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(5, 2), (1, 1), (512, 3)], ids=str)
def test_text_rows_are_what_the_blocks_read(tiny_checkpoint, dtype, lengths):
    pipeline = WanPipeline.load(tiny_checkpoint, dtype=dtype, device="cpu")
    text, seen = texts(*lengths).to(dtype=dtype), []
    hook = attention(pipeline.transformer).register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with torch.no_grad():
        pipeline.predict(pipeline.transformer, torch.zeros(2, 4, 1, 4, 4), torch.tensor(500.0), text)
    hook.remove()
    rows = text_rows(pipeline.transformer, text, pipeline.folds_padding)
    assert torch.equal(rows.rows, seen[0])
    assert (rows.bias is None) == (dtype == torch.bfloat16)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("lengths", [(5, 2), (0, 512), (0,)], ids=str)
def test_attention_masses_sum_to_one(transformer, folded, lengths):
    asking = torch.randn(len(lengths), 7, DIM, generator=torch.Generator().manual_seed(1))
    mass = attention_mass(attention(transformer), asking, text_rows(transformer, texts(*lengths), folded))
    assert mass.min() >= 0
    assert torch.allclose(mass.sum(dim=1), torch.ones(len(lengths)), atol=1e-5)


def test_a_folded_row_has_the_mass_of_all_its_padding(transformer):
    asking, text = torch.randn(2, 7, DIM, generator=torch.Generator().manual_seed(1)), texts(5, 2)
    folded, full = (text_rows(transformer, text, folded) for folded in (True, False))
    short, long = (attention_mass(attention(transformer), asking, rows) for rows in (folded, full))
    assert torch.allclose(short[0, :5], long[0, :5], atol=1e-6)
    assert short[0, 5].item() == pytest.approx(long[0, 5:].sum().item(), abs=1e-5)
    assert short[1].tolist()[2:5] == [0.0, 0.0, 0.0]  # rows that only the other prompt has
    assert short[1, 5].item() == pytest.approx(long[1, 2:].sum().item(), abs=1e-5)


def test_equal_rows_share_the_attention_equally(transformer):
    asking = torch.randn(1, 7, DIM, generator=torch.Generator().manual_seed(1))
    zeros = TextEmbeddings(torch.zeros(4, TEXT_DIM), torch.tensor([4]))  # tokens that are what padding is
    mass = attention_mass(attention(transformer), asking, text_rows(transformer, zeros, folded=True))
    assert mass[0].tolist() == pytest.approx([1 / 512] * 4 + [508 / 512], rel=1e-4)


def test_many_queries_are_taken_some_at_a_time(transformer, monkeypatch):
    asking, rows = torch.randn(2, 7, DIM), text_rows(transformer, texts(5, 2), folded=True)
    whole = attention_mass(attention(transformer), asking, rows)
    monkeypatch.setattr(projection, "_LOGITS_AT_ONCE", 50)
    assert torch.allclose(attention_mass(attention(transformer), asking, rows), whole, atol=1e-6)


def test_text_of_another_width_too_long_or_without_weights_is_refused(transformer):
    with pytest.raises(ShapeError, match="text of 3 channels; this transformer reads text of 16"):
        project(transformer, TextEmbeddings(torch.zeros(1, 3), torch.tensor([1])))
    for folded in (True, False):
        with pytest.raises(ShapeError, match="513"):
            text_rows(transformer, texts(513), folded)
    with torch.device("meta"):
        empty = WanTransformer3DModel.from_config(transformer.config)
    with pytest.raises(ConfigError, match="not loaded"):
        project(cast(WanTransformer3DModel, empty), texts(1))
