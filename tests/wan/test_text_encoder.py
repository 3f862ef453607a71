"""Prompts are cleaned and encoded as Wan does it, whatever is thrown at them."""

import logging
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, UMT5EncoderModel

from latentloom.errors import PromptError
from latentloom.wan.prompt_cleaning import clean
from latentloom.wan.text_encoder import WanTextEncoder


@pytest.fixture(scope="module")
def encoder(tiny_checkpoint: Path) -> WanTextEncoder:
    model = UMT5EncoderModel.from_pretrained(tiny_checkpoint / "text_encoder")
    return WanTextEncoder(model, AutoTokenizer.from_pretrained(tiny_checkpoint / "tokenizer"))


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a  red\n\tcircle ", "a red circle"),
        ("l\u2019\u00e9toile", "l'\u00e9toile"),
        ("caf\u00c3\u00a9", "caf\u00e9"),
        ("red &amp;amp; blue <b>", "red & blue <b>"),
        ("a\x00red\x07circle", "aredcircle"),
        ("\ud800", "\ufffd"),
        ("a red circle \U0001f534", "a red circle \U0001f534"),
        ("", ""),
    ],
)
def test_cleaning_repairs_text_as_wan_does(raw: str, cleaned: str):
    assert clean(raw) == cleaned


@given(st.text(max_size=40))
def test_cleaning_equals_the_reference_and_is_one_line(text: str):
    cleaned = clean(text)
    assert cleaned == prompt_clean(text)
    assert "\n" not in cleaned
    assert "\x00" not in cleaned


@pytest.mark.parametrize("prompt", [None, 3, b"a red circle", ["a red circle"]])
def test_a_prompt_that_is_not_text_is_refused(prompt: object):
    with pytest.raises(PromptError, match="must be text"):
        clean(prompt)


def test_no_prompt_and_a_bare_string_are_refused(encoder: WanTextEncoder):
    with pytest.raises(PromptError, match="at least one"):
        encoder.encode([])
    with pytest.raises(PromptError, match="list"):
        encoder.encode("a red circle")


def test_every_prompt_keeps_its_true_length_and_ends_with_the_closing_token(encoder: WanTextEncoder):
    ids, mask = encoder.tokenize(["a small red circle", "", "red"])
    assert mask.sum(dim=1).tolist() == [5, 1, 2]
    assert [int(row[m][-1]) for row, m in zip(ids, mask, strict=True)] == [1, 1, 1]
    embeddings = encoder.encode(["a small red circle", "", "red"])
    assert embeddings.lengths.tolist() == [5, 1, 2]
    assert embeddings.tokens.shape == (8, 16)


def test_embeddings_equal_the_reference_that_pads_to_512(encoder: WanTextEncoder):
    prompts = ["A small red circle moves to the left.", "blue", ""]
    inputs = encoder.tokenizer(prompts, padding="max_length", max_length=512, return_tensors="pt")
    with torch.no_grad():
        reference = encoder.model(inputs.input_ids, inputs.attention_mask).last_hidden_state
    embeddings = encoder.encode(prompts)
    mask = inputs.attention_mask.bool()
    assert torch.equal(embeddings.mask(512), mask)
    torch.testing.assert_close(embeddings.padded(512), reference * mask[..., None], atol=1e-5, rtol=0)


def test_a_prompt_does_not_depend_on_the_prompts_beside_it(encoder: WanTextEncoder):
    alone = encoder.encode(["red circle"])
    beside = encoder.encode(["a large green square moves down on a white background", "red circle"])[1]
    torch.testing.assert_close(alone.tokens, beside.tokens, atol=1e-6, rtol=0)
    last = encoder.encode(["blue"] * 70 + ["red circle"])[70]
    torch.testing.assert_close(alone.tokens, last.tokens, atol=1e-6, rtol=0)


def test_a_prompt_of_ten_thousand_words_is_cut_with_a_warning(
    encoder: WanTextEncoder, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, logger="latentloom"):
        embeddings = encoder.encode(["red", " ".join(["red"] * 10_000)])
    assert embeddings.lengths.tolist() == [2, 512]
    assert "prompt 1 has 10001 tokens; only the first 512 are used" in caplog.text
    ids, _ = encoder.tokenize([" ".join(["red"] * 10_000)])
    assert int(ids[0, -1]) == 1, "the closing token survives the cut"


def test_a_prompt_of_exactly_the_limit_is_not_reported(encoder: WanTextEncoder, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="latentloom"):
        assert encoder.encode([" ".join(["red"] * 511)]).lengths.tolist() == [512]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "prompt", ["\x00", "\U0001f534\U0001f1e9\U0001f1ea", "red\ncircle", "\u202ered", "&#0;", "\ud83d"]
)
def test_odd_prompts_give_finite_embeddings(encoder: WanTextEncoder, prompt: str):
    embeddings = encoder.encode([prompt])
    assert len(embeddings) == 1
    assert torch.isfinite(embeddings.tokens).all()


def test_the_fingerprint_tells_weights_apart_but_not_dtypes(tiny_checkpoint: Path, encoder: WanTextEncoder):
    again = UMT5EncoderModel.from_pretrained(tiny_checkpoint / "text_encoder", dtype=torch.bfloat16)
    assert WanTextEncoder(again, encoder.tokenizer).fingerprint() == encoder.fingerprint()
    with torch.no_grad():
        again.encoder.final_layer_norm.weight.mul_(1.5)
    assert WanTextEncoder(again, encoder.tokenizer).fingerprint() != encoder.fingerprint()
