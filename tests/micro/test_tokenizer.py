"""The tokenizer knows every word of the world as one piece and survives everything else."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from latentloom.micro.attributes import split
from latentloom.micro.captions import TEMPLATES, caption, grammar_words
from latentloom.micro.lexicon import lexicon_words
from latentloom.micro.tokenizer import make_tokenizer

TOKENIZER = make_tokenizer()
PAD, END, UNKNOWN = 0, 1, 2


def ids(text: str) -> list[int]:
    return TOKENIZER(text, truncation=True)["input_ids"]


def test_there_are_at_most_a_thousand_pieces_all_different():
    assert len(TOKENIZER) <= 1000
    assert len(set(TOKENIZER.get_vocab().values())) == len(TOKENIZER.get_vocab()) == len(TOKENIZER)


def test_the_special_pieces_have_the_numbers_of_umt5():
    assert TOKENIZER.convert_tokens_to_ids(["<pad>", "</s>", "<unk>"]) == [PAD, END, UNKNOWN]
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id, TOKENIZER.unk_token_id) == (PAD, END, UNKNOWN)


@pytest.mark.parametrize("form", [str, str.upper, str.capitalize])
def test_every_word_of_the_lexicons_and_of_the_grammar_is_one_piece(form):
    words = {*lexicon_words(), *grammar_words()}
    split_up = [word for word in words if len(ids(form(word))) != 2 or UNKNOWN in ids(form(word))]
    assert split_up == []
    assert len({ids(word)[0] for word in words}) == len(words)


def test_a_caption_has_one_piece_for_each_word_and_mark():
    source = torch.Generator().manual_seed(0)
    for item in split("held_out"):
        for style in TEMPLATES:
            text = re.sub(r"\b([Aa])n ", r"\1 ", caption(item, style, source))  # "an" is no word of the templates
            pieces = ids(text)
            expected = len(re.findall(r"[A-Za-z]+|[,.]", text))
            assert UNKNOWN not in pieces
            assert len(pieces) - 1 == expected, (text, TOKENIZER.convert_ids_to_tokens(pieces))


@given(text=st.text(max_size=60))
def test_any_text_is_encoded_and_ends_once(text):
    text = re.sub(r"</?(s|pad|unk)>", "", text)
    pieces = ids(text)
    assert pieces[-1] == END
    assert END not in pieces[:-1]
    assert PAD not in pieces
    assert all(0 <= piece < len(TOKENIZER) for piece in pieces)


def test_what_it_has_no_piece_for_is_unknown_and_its_neighbours_are_kept():
    assert ids("😀")[-2:] == [UNKNOWN, END]
    for strange in ("😀", "\x00", "漢字"):
        pieces = ids(f"red {strange} circle")
        assert UNKNOWN in pieces
        assert (pieces[0], pieces[-2]) == (ids("red")[0], ids("circle")[0])


def test_an_unknown_word_is_spelled():
    pieces = TOKENIZER.convert_ids_to_tokens(ids("zebra"))
    assert "".join(pieces) == "▁zebra</s>"
    assert len(pieces) > 3


def test_an_empty_text_is_its_end():
    assert ids("") == [END]


def test_a_long_text_is_cut_to_512_pieces_and_still_ends():
    pieces = ids("red " * 10_000)
    assert len(pieces) == 512
    assert pieces[-1] == END
    assert set(pieces[:-1]) == {ids("red")[0]}


def test_a_batch_is_padded_on_the_right_and_masked():
    batch = TOKENIZER(["red circle", "red"], padding="max_length", max_length=5, return_tensors="pt")
    red, circle = ids("red")[0], ids("circle")[0]
    assert batch["input_ids"].tolist() == [[red, circle, END, PAD, PAD], [red, END, PAD, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_it_is_always_the_same():
    first, second = (make_tokenizer().backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_it_comes_back_from_its_folder(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.model_max_length == 512
    for text in ("A small red circle moves to the left on a black background.", "", "😀 zebra"):
        assert loaded(text)["input_ids"] == ids(text)
